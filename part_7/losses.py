"""Lesson 7.3 - losses on pairs: how far the chosen answer's reward must be above the rejected one's.

    Bradley-Terry    -log sigmoid(r_c - r_r - m)           (Bradley & Terry 1952; Ouyang et al. 2022, equation 1; margin m:
                                                            Touvron et al. 2023, "Llama 2", equation 2)
    margin ranking   max(0, m - (r_c - r_r))

Only differences count: adding a constant to all rewards of a prompt changes neither loss. So the rewards of two prompts
cannot be compared, unless `centring` draws those of each towards 0.
"""

import torch.nn.functional as F


def bradley_terry_loss(chosen, rejected, margin=0.0, label_smoothing=0.0, centring=0.0):
    """Negative log-likelihood of the choices in nats a pair, a scalar.

    chosen, rejected: (B,) rewards; margin: a number, or (B,), by which the better one should be ahead; label_smoothing:
    the share e of labels that are taken for wrong, (1 - e) l(d) + e l(-d), d = r_c - r_r; centring: weight of
    (r_c + r_r)^2, which keeps rewards around 0 (Eisenstein et al. 2023, "Helping or Herding?"). ln 2 for equal rewards
    without margin and centring.
    """
    lead = chosen - rejected
    loss = -(1 - label_smoothing) * F.logsigmoid(lead - margin) - label_smoothing * F.logsigmoid(-lead - margin)
    return (loss + centring * (chosen + rejected) ** 2).mean()


def margin_ranking_loss(chosen, rejected, margin=1.0, centring=0.0):
    """By how much the chosen reward falls short of being ahead by `margin`, the mean over pairs: a scalar.

    chosen, rejected: (B,); margin: a number, or (B,); centring: as above. Pairs ahead by the margin have no gradient
    but centring's.
    """
    return (F.relu(margin - (chosen - rejected)) + centring * (chosen + rejected) ** 2).mean()


LOSSES = {"bradley_terry": bradley_terry_loss, "margin_ranking": margin_ranking_loss}
