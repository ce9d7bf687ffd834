import itertools
import string
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from part_6.metrics import bootstrap_interval, exact_match, normalise, rouge_l, token_f1

Z = NormalDist().inv_cdf(0.975)  # 1.96
WORDS = st.lists(st.sampled_from("abc"), max_size=7).map(" ".join)


@pytest.mark.parametrize("text, words", [
    ("The Cat, sat.", ["the", "cat", "sat"]),
    ("  one\t two\n\nthree ", ["one", "two", "three"]),
    ("7+5=12: 72", ["7", "5", "12", "72"]),
    ("don't well-known", ["don", "t", "well", "known"]),
    ("an a the", ["an", "a", "the"]),  # unlike SQuAD's
    ("ÄPFEL “café”", ["äpfel", "“café”"]),  # punctuation beyond ASCII stays
    ("-5 1.5", ["5", "1", "5"]),
    ("", []),
    (string.punctuation, []),
])
def test_normalise_by_hand(text, words):
    assert normalise(text) == words


def test_exact_match_looks_at_words_and_their_order_alone():
    assert exact_match("Red,  Cup", "red cup.") and exact_match("", "...")
    assert not exact_match("cup red", "red cup") and not exact_match("red", "red red") and not exact_match("", "red")


def test_token_f1_by_hand():
    # In common are the, cat, on, mat: precision 4/6, recall 4/6.
    assert token_f1("The cat sat on the mat.", "the cat is on a mat") == pytest.approx(2 / 3)
    # Two of the three a's count: P = 2/3, R = 2/4, 2 P R / (P + R) = (2/3) / (7/6) = 4/7.
    assert token_f1("a a a", "a a b b") == pytest.approx(4 / 7)
    assert token_f1("a", "a b c") == pytest.approx(1 / 2)  # P = 1, R = 1/3
    assert token_f1("dog bites man", "Man bites dog!") == 1.0
    assert token_f1("a b", "c d") == 0.0


def test_rouge_l_of_the_paper_s_example():
    # Lin 2004, section 3.1: with beta 1 "police kill the gunman" scores 3/4, "the gunman kill police" 2/4.
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == 0.75
    assert rouge_l("the gunman kill police", reference) == 0.5


def test_rouge_l_by_hand():
    assert rouge_l("dog bites man", "man bites dog") == pytest.approx(1 / 3)
    assert rouge_l("a b c d e", "a c e") == pytest.approx(2 * 3 / 8)  # P = 3/5, R = 1
    assert rouge_l("A, b!", "a b") == 1.0


@pytest.mark.parametrize("score", [token_f1, rouge_l])
def test_a_text_without_words_matches_only_another_one(score):
    assert score("", "!") == 1.0 and score("", "a") == 0.0 and score("a", "...") == 0.0


@given(WORDS, WORDS)
def test_rouge_l_is_the_f1_of_the_longest_of_all_common_subsequences(answer, reference):
    a, b = answer.split(), reference.split()
    subsequences = {chosen for k in range(len(b) + 1) for chosen in itertools.combinations(b, k)}
    longest = max(k for k in range(len(a) + 1) for chosen in itertools.combinations(a, k) if chosen in subsequences)
    precision, recall = (longest / len(words) if words else float(a == b) for words in (a, b))
    expected = 2 * precision * recall / (precision + recall) if precision and recall else 0.0
    assert rouge_l(answer, reference) == pytest.approx(expected)


@given(WORDS, WORDS)
def test_token_f1_counts_each_word_as_often_as_both_have_it(answer, reference):
    a, left = answer.split(), reference.split()
    n_reference, common = len(left), 0
    for word in a:
        if word in left:
            left.remove(word)
            common += 1
    expected = 2 * common / (len(a) + n_reference) if a or n_reference else 1.0
    assert token_f1(answer, reference) == pytest.approx(expected)


def verdicts(n_right, n):
    return [1.0] * n_right + [0.0] * (n - n_right)


def test_the_interval_of_a_share_is_the_normal_approximation_s_for_large_n():
    half = Z * (0.3 * 0.7 / 2000) ** 0.5  # 0.0201
    assert bootstrap_interval([verdicts(600, 2000)]) == pytest.approx((0.3 - half, 0.3 + half), abs=0.002)


def test_the_interval_of_a_mean_has_the_standard_error_of_its_numbers():
    numbers = np.random.default_rng(0).gamma(2.0, size=1500)
    half = Z * numbers.std() / 1500**0.5
    assert bootstrap_interval([numbers]) == pytest.approx((numbers.mean() - half, numbers.mean() + half), abs=0.1 * half)


def test_the_level_is_the_share_of_means_inside():
    half = NormalDist().inv_cdf(0.75) * (0.3 * 0.7 / 2000) ** 0.5  # of a level of 50 %
    assert bootstrap_interval([verdicts(600, 2000)], level=0.5) == pytest.approx((0.3 - half, 0.3 + half), abs=0.001)


def test_groups_count_alike_whatever_their_size():
    # Mean (0.9 + 0.5) / 2; variance (0.9 0.1 / 1000 + 0.5 0.5 / 200) / 4. All in one: 1000 of 1200, 0.833.
    half = Z * ((0.09 / 1000 + 0.25 / 200) / 4) ** 0.5
    interval = bootstrap_interval([verdicts(900, 1000), verdicts(100, 200)])
    assert interval == pytest.approx((0.7 - half, 0.7 + half), abs=0.1 * half)


def test_groups_are_resampled_one_by_one():
    # What differs between groups is no uncertainty: all right here, all wrong there, again and again.
    assert bootstrap_interval([verdicts(50, 50), verdicts(0, 50)]) == (0.5, 0.5)


def test_some_95_percent_of_the_intervals_hold_the_true_share():
    rng, n_simulations = np.random.default_rng(1), 500
    covered = 0
    for number in range(n_simulations):
        low, high = bootstrap_interval([rng.random(100) < 0.6], n_resamples=500, seed=number)
        covered += low <= 0.6 <= high
    assert 0.92 <= covered / n_simulations <= 0.98  # two standard errors are 0.02


def test_the_interval_is_a_function_of_the_seed():
    group = np.random.default_rng(0).random(30)
    assert bootstrap_interval([group], seed=3) == bootstrap_interval([group], seed=3) != bootstrap_interval([group], seed=4)


@pytest.mark.parametrize("groups", [[], [[]], [[1.0], []]])
def test_the_mean_of_nothing_has_no_interval(groups):
    with pytest.raises(ValueError, match="nothing"):
        bootstrap_interval(groups)
