"""Lesson 9.4 - the divergence from the reference as a loss: three estimators, their means, variances and gradients.

    d = log pi(a) - log pi_ref(a),  a drawn from pi                        E[estimate]      E[its gradient] =  gradient of
    k1 = d                                                                 KL(pi || ref)                       nothing: 0
    k2 = d^2 / 2                                                           about it                            KL(pi || ref)
    k3 = exp(-d) - 1 + d                                                   KL(pi || ref)                       KL(ref || pi)
    rho k1 and rho k3, rho = pi / pi_old with its gradient                 KL(pi || ref)                       KL(pi || ref)

(rho k2 is not among them: its gradient is that of no divergence.)

(Schulman 2020, "Approximating KL Divergence", for the estimators.) As a number to look at, k3 is the best one near the
reference: unbiased, never negative, of little variance; far from it exp(-d) makes it the worst. As a loss something else
counts: differentiating the estimate leaves out that pi also decides what is drawn. k1's gradient is that of log pi, whose
expectation is zero: in the loss it is no penalty at all. The importance weight rho puts the missing part back, on data of
an older policy, too. Made token by token, it is each state's divergence, the states taken as given: what a token does to the
divergence of later ones only a penalty in the reward counts (lesson 8.2).
"""

ESTIMATORS = ("k1", "k2", "k3")


def kl_estimates(new, ref, estimator="k3", old=None):
    """The estimate for each token, (...). new, ref: (...) log-probabilities of the tokens drawn; estimator: of ESTIMATORS;
    old: (...) log-probabilities when they were drawn, for the importance-weighted form. ValueError for another estimator."""
    difference = new - ref
    if estimator == "k1":
        estimate = difference
    elif estimator == "k2":
        estimate = difference**2 / 2
    elif estimator == "k3":
        estimate = (-difference).exp() - 1 + difference
    else:
        raise ValueError(f"the estimator must be one of {', '.join(ESTIMATORS)}, not {estimator}")
    return estimate if old is None else (new - old).exp() * estimate
