"""Lesson 9.1: groups of answers, asked in one process or several, against loops over one answer at a time."""

import copy
import statistics
import threading

import numpy as np
import pytest
import torch

from part_0.cli import InputError
from part_4.distributed import Process
from part_6.prompt_template import END
from part_8.stages import load_stages
from part_9 import group_experience, train_grpo
from part_9.group_experience import Groups, ask, gather_groups, make_group_experience, shared_out
from part_9.grpo_config import Config
from tests.part_8.tiny_stages import TOKENIZER, make_reward_model, make_sft, tiny_model

END_ID = TOKENIZER.special_ids[END]
CPU = torch.device("cpu")
ALONE = Process()
TINY = dict(n_prompts=24, steps=3, batch_size=12, group_size=3, minibatch_size=12, block_size=6, overlong_margin=2,
            n_held_out=0, n_tasks=0, device="cpu", lr=5e-3, out="nowhere")


MODELS = [tiny_model(seed) for seed in (0, 1)]
with torch.no_grad():
    for model in MODELS:
        model.head.weight.mul_(12)  # their distributions are far from uniform


def policy_of(seed=0):
    """A model of one's own: packed weights (part_0.device) are for one process."""
    return copy.deepcopy(MODELS[seed])


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    path = tmp_path_factory.mktemp("stages")
    return dict(sft=str(make_sft(path / "sft.pt", policy_of())), reward_model=str(make_reward_model(path / "rm.pt")))


@pytest.fixture(scope="module")
def stages(paths):
    return load_stages(Config(**TINY, **paths), CPU)


def config(**changes):
    return Config(**{**TINY, **changes})


def in_processes(monkeypatch, n, function):
    """What function(Process) returns in each of `n` processes that run side by side: threads that gather as processes do."""
    barrier, here, slots, results = threading.Barrier(n, timeout=30), threading.local(), [None] * n, [None] * n

    def gather(value):
        slots[here.rank] = value
        barrier.wait()
        found = list(slots)
        barrier.wait()  # nobody may write before all have read
        return found

    def run(rank):
        here.rank = rank
        try:
            results[rank] = function(Process(rank, n, rank))
        except Exception as error:
            results[rank] = error
            if not isinstance(error, InputError):
                barrier.abort()  # the others must not wait for one that is gone

    with monkeypatch.context() as patch:
        patch.setattr(group_experience, "gather", gather)
        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, InputError):
            raise result
    return results


def count_17(prompts, rollout):
    """A reward with many different values."""
    return torch.tensor([sum(ids) % 97 / 97 for ids in rollout.answers()])


def written(prompts, answers, scores):
    """Groups made by hand; all of them count as asked for."""
    return Groups(prompts, answers, torch.tensor(scores), 1, 1, 0)


def hand_made(stages, seed=0, n_groups=2, G=3):
    """Groups of answers of different lengths, some of which end."""
    rng = np.random.default_rng(seed)
    answers = []
    for i in range(n_groups * G):
        ids = rng.integers(5, 300, size=int(rng.integers(1, 6))).tolist()
        answers.append(ids + [END_ID] if i % 3 else ids)
    prompts = [prompt for prompt in stages.prompts[:n_groups] for _ in range(G)]
    return written(prompts, answers, rng.normal(size=n_groups * G).astype("float32").tolist())


def make(groups, c, seed=0, process=ALONE):
    """The experience of a policy that has left its reference."""
    return make_group_experience(policy_of(seed), policy_of(1), groups, c, END_ID, torch.float32, process)


# ------------------------------------------------------------------------------------------------ asking


def test_the_answers_to_a_prompt_stand_side_by_side_and_are_drawn_apart(stages):
    # Almost greedy, every sample is the greedy answer, so each place shows to which prompt it belongs.
    c, model = config(), policy_of()
    greedy = [ask(model, [one], 2, 6, stages.stop_ids, 1e-6, [1, 0], 1, ALONE)[0] for one in stages.prompts[:4]]
    assert len({tuple(ids) for ids in greedy}) > 1
    assert ask(model, stages.prompts[:4], 3, 6, stages.stop_ids, 1e-6, [1, 0], 2, ALONE) == [
        ids for ids in greedy for _ in range(3)]
    samples = ask(model, stages.prompts[:4], 3, 6, stages.stop_ids, c.temperature, [1, 0], 2, ALONE)
    assert len(samples) == 12 and all(1 <= len(ids) <= 6 for ids in samples)
    for start in range(0, 12, 3):
        assert len({tuple(ids) for ids in samples[start:start + 3]}) > 1
    # every chunk has random numbers of its own: the same prompt again gives other answers
    twice = ask(model, [stages.prompts[0]] * 2, 3, 6, stages.stop_ids, 1.0, [1, 0], 1, ALONE)
    assert twice[:3] != twice[3:]


def test_the_samples_of_a_prompt_are_distributed_as_the_policy_says_each_one_of_them(stages):
    model, prompt = policy_of(), stages.prompts[0]
    with torch.no_grad():
        p = model(torch.tensor([prompt.ids]))[0, -1].softmax(-1)
    firsts = torch.tensor([ids[0] for ids in ask(model, [prompt], 2000, 1, stages.stop_ids, 1.0, [3], 1, ALONE)])
    likely = p.topk(3).indices.tolist()
    for token in likely:
        n = int((firsts == token).sum())
        assert abs(n - 2000 * p[token]) < 4 * (2000 * p[token] * (1 - p[token])) ** 0.5 + 1
    # independent: the first of a pair says nothing about the second
    both = ((firsts[::2] == likely[0]) & (firsts[1::2] == likely[0])).float().mean()
    assert both == pytest.approx(p[likely[0]].item() ** 2, abs=4 * (p[likely[0]] / 1000).item() ** 0.5)


def test_the_seed_and_nothing_else_decides_what_is_drawn(stages):
    draw = {seed: ask(policy_of(), stages.prompts[:2], 3, 6, stages.stop_ids, 1.0, list(seed), 2, ALONE)
            for seed in ((1, 0, 0), (1, 1, 0), (2, 0, 0), (1, 0, 1))}
    assert len({str(answers) for answers in draw.values()}) == 4
    torch.manual_seed(99)
    assert ask(policy_of(), stages.prompts[:2], 3, 6, stages.stop_ids, 1.0, [1, 0, 0], 2, ALONE) == draw[1, 0, 0]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_answers_do_not_depend_on_who_asks_for_which_chunk(n, stages, monkeypatch):
    alone = ask(policy_of(), stages.prompts[:7], 2, 5, stages.stop_ids, 1.0, [1, 2], 2, ALONE)  # 4 chunks
    for answers in in_processes(monkeypatch, n, lambda process: ask(policy_of(), stages.prompts[:7], 2, 5, stages.stop_ids,
                                                                    1.0, [1, 2], 2, process)):
        assert answers == alone


def test_every_chunk_is_asked_by_one_process_alone(stages, monkeypatch):
    asked, collect = [], group_experience.collect

    def watch(policy, prompts, *rest, **options):
        asked.append(len(prompts))
        return collect(policy, prompts, *rest, **options)

    monkeypatch.setattr(group_experience, "collect", watch)
    in_processes(monkeypatch, 2, lambda process: ask(policy_of(), stages.prompts[:7], 2, 5, stages.stop_ids, 1.0, [1], 2,
                                                     process))
    assert sorted(asked) == [1, 2, 2, 2]


@pytest.mark.parametrize("n", [2, 3, 8])
def test_shared_out_rows_come_back_in_order_and_once(n, monkeypatch):
    numbers, seen = torch.arange(7), []

    def double(rows):
        seen.extend(numbers[rows].tolist())
        return [2 * numbers[rows], numbers[rows, None].expand(-1, 2)]

    for left, right in in_processes(monkeypatch, n, lambda process: shared_out(double, 7, process)):
        assert left.tolist() == [0, 2, 4, 6, 8, 10, 12] and right.tolist() == [[i, i] for i in range(7)]
    assert sorted(seen) == [0, 1, 2, 3, 4, 5, 6]


def test_an_input_error_of_one_process_is_raised_in_all(monkeypatch):
    def refuse(rows):
        if rows.start == 2:
            raise InputError("not this one")
        return [torch.zeros(rows.stop - rows.start)]

    errors = in_processes(monkeypatch, 3, lambda process: shared_out(refuse, 6, process))
    assert [str(error) for error in errors] == ["not this one"] * 3


# ------------------------------------------------------------------------------------------------ groups


def test_the_groups_of_a_step_are_a_function_of_its_number_alone(stages):
    c = config()
    one = gather_groups(policy_of(), stages, count_17, c, 1, ALONE)
    torch.manual_seed(5)
    two = gather_groups(policy_of(), stages, count_17, c, 1, ALONE)
    other = gather_groups(policy_of(), stages, count_17, c, 0, ALONE)
    assert (one.answers, one.prompts) == (two.answers, two.prompts) and torch.equal(one.scores, two.scores)
    assert other.answers != one.answers
    # steps 0 and 1 are of one epoch: none of the 24 prompts comes twice in it
    ids = [tuple(prompt.ids) for prompt in (*one.prompts, *other.prompts)]
    assert len(set(ids)) == 8 and all(ids.count(key) == 3 for key in ids)
    assert all(one.prompts[i] is one.prompts[i // 3 * 3] for i in range(12))
    assert one.scores.tolist() == pytest.approx([sum(answer) % 97 / 97 for answer in one.answers])
    again = gather_groups(policy_of(), stages, count_17, config(seed=-1), 1, ALONE)
    assert again.answers != one.answers


@pytest.mark.parametrize("n, resample", [(2, 0), (4, 0), (2, 2), (4, 2)])
def test_several_processes_make_the_same_groups_as_one(n, resample, stages, monkeypatch):
    c = config(rollout_size=3, resample=resample)

    def often_equal(prompts, rollout):
        return torch.tensor([float(sum(ids) % 2) for ids in rollout.answers()])

    alone = gather_groups(policy_of(), stages, often_equal, c, 0, ALONE)
    assert (alone.n_asked > 4) == bool(resample)
    for groups in in_processes(monkeypatch, n, lambda process: gather_groups(policy_of(), stages, often_equal, c, 0,
                                                                             process)):
        assert (groups.prompts, groups.answers, groups[3:6]) == (alone.prompts, alone.answers, alone[3:6])
        assert torch.equal(groups.scores, alone.scores) and torch.equal(groups.asked_scores, alone.asked_scores)


@pytest.mark.parametrize("n", [2, 3])
def test_several_processes_assess_the_same_as_one(n, stages, monkeypatch):
    groups, c = hand_made(stages), config()
    alone = make(groups, c)
    for experience in in_processes(monkeypatch, n, lambda process: make(groups, c, process=process)):
        for ours, theirs in zip((*experience.rollout, *experience[1:]), (*alone.rollout, *alone[1:])):
            assert torch.allclose(ours.double(), theirs.double(), atol=1e-5)


def test_fewer_answers_than_processes_are_judged_and_assessed(stages, monkeypatch):
    # what is left where nearly all groups are lost: two answers, of which some processes get none
    groups, c = hand_made(stages, n_groups=1, G=2), config(group_size=2)
    alone = make(groups, c)
    for experience in in_processes(monkeypatch, 4, lambda process: make(groups, c, process=process)):
        assert torch.allclose(experience.log_probs, alone.log_probs, atol=1e-5)
    c = config(group_size=2, batch_size=2, minibatch_size=2, rollout_size=2)
    alone = gather_groups(policy_of(), stages, count_17, c, 0, ALONE)
    for gathered in in_processes(monkeypatch, 4, lambda process: gather_groups(policy_of(), stages, count_17, c, 0,
                                                                               process)):
        assert gathered.answers == alone.answers and torch.equal(gathered.scores, alone.scores)


def by_prompt(stages, bad):
    """A reward that is the same for all answers to the prompts numbered `bad`, and for no two answers to another."""
    numbers = {tuple(prompt.ids): i for i, prompt in enumerate(stages.prompts)}

    def reward(prompts, rollout):
        asked.append([numbers[tuple(prompt.ids)] for prompt in prompts])
        return torch.tensor([0.25 if numbers[tuple(prompt.ids)] in bad else float(row)
                             for row, prompt in enumerate(prompts)])

    asked = []
    return reward, asked


def test_without_resampling_groups_without_spread_are_kept_and_counted(stages):
    reward, asked = by_prompt(stages, set(range(24)))
    groups = gather_groups(policy_of(), stages, reward, config(), 0, ALONE)
    assert len(asked) == 1 and len(groups.answers) == 12 and groups[3:6] == (4, 0, 0)
    _, first = by_prompt(stages, set()), asked[0]
    reward, _ = by_prompt(stages, {first[0], first[-1]})
    groups = gather_groups(policy_of(), stages, reward, config(), 0, ALONE)
    assert len(groups.answers) == 12 and groups[3:6] == (4, 2, 0)


def test_resampling_asks_other_prompts_in_place_of_groups_without_spread(stages):
    reward, asked = by_prompt(stages, set())
    everything = gather_groups(policy_of(), stages, reward, config(resample=2), 0, ALONE)
    assert len(asked) == 1 and len(everything.answers) == 12 and everything[3:6] == (4, 4, 0)  # nothing to replace
    first = list(dict.fromkeys(asked[0]))
    reward, asked = by_prompt(stages, {first[0], first[2]})
    groups = gather_groups(policy_of(), stages, reward, config(resample=2), 0, ALONE)
    assert [len(set(one)) for one in asked] == [4, 2] and groups[3:6] == (6, 4, 0)
    kept = [first[1], first[3], *dict.fromkeys(asked[1])]
    assert [prompt.ids for prompt in groups.prompts] == [stages.prompts[i].ids for i in kept for _ in range(3)]
    assert not set(asked[1]) & set(first) and len(groups.answers) == len(groups.scores) == 12
    assert sorted(groups.asked_scores.tolist()) == sorted([0.25] * 6 + groups.scores.tolist())  # of the replaced, too
    # those that stay are the very answers of the first time, with their rewards
    for place, group in ((0, 1), (1, 3)):
        rows, their = slice(place * 3, place * 3 + 3), slice(group * 3, group * 3 + 3)
        assert groups.answers[rows] == everything.answers[their]
        assert torch.equal(groups.scores[rows], everything.scores[their])


@pytest.mark.parametrize("resample", [1, 3])
def test_resampling_ends_after_so_many_rounds_with_what_there_is(resample, stages):
    reward, asked = by_prompt(stages, set(range(24)))
    groups = gather_groups(policy_of(), stages, reward, config(resample=resample), 0, ALONE)
    assert len(asked) == 1 + resample and groups[3:6] == (4 * (1 + resample), 0, 0)
    assert groups.answers == groups.prompts == [] and groups.scores.shape == (0,)
    drawn = sum((list(dict.fromkeys(one)) for one in asked), [])
    assert len(set(drawn)) == len(drawn)  # no prompt is asked twice
    # and the next step goes on with others still
    n_asked = len(asked)
    gather_groups(policy_of(), stages, reward, config(resample=resample), 1, ALONE)
    again = [i for one in asked[n_asked:] for i in one]
    assert resample != 1 or not set(again) & set(drawn)


def test_a_prompt_that_is_asked_again_in_a_step_gets_other_answers(stages):
    rounds = []

    def alike(prompts, rollout):
        rounds.append(rollout.answers())
        return torch.zeros(len(prompts))

    gather_groups(policy_of(), stages._replace(prompts=[stages.prompts[0]] * 4), alike, config(resample=1), 0, ALONE)
    assert len(rounds) == 2 and rounds[0] != rounds[1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("resample", [0, 1])
def test_a_reward_that_is_no_number_costs_its_whole_group(bad, resample, stages):
    calls = []

    def reward(prompts, rollout):
        scores = torch.arange(float(len(prompts)))
        if not calls:
            scores[4] = bad  # the second answer of the second group
        calls.append(len(prompts))
        return scores

    groups = gather_groups(policy_of(), stages, reward, config(resample=resample), 0, ALONE)
    assert groups.n_lost == 3 and groups.scores.isfinite().all()
    assert calls == [12, 3][:1 + resample]
    assert groups.scores.tolist()[:9] == [0, 1, 2, 6, 7, 8, 9, 10, 11]
    assert torch.equal(groups.asked_scores, groups.scores)  # none of the lost ones
    assert len(groups.prompts) == len(groups.answers) == len(groups.scores) == (12 if resample else 9)
    assert (groups.n_asked, groups.n_spread) == ((5, 4) if resample else (4, 3))


def test_a_group_of_nothing_but_nan_has_no_spread_and_is_lost(stages):
    groups = gather_groups(policy_of(), stages, lambda prompts, rollout: torch.full((len(prompts),), torch.nan), config(), 0,
                           ALONE)
    assert groups.answers == [] and groups[3:6] == (4, 0, 12)


# ------------------------------------------------------------------------------------------------ what is known of answers


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_of_policy_and_reference_and_entropies_are_those_of_a_slow_loop(temperature, stages):
    groups, c = hand_made(stages), config(temperature=temperature)
    experience = make(groups, c)
    policy, reference = policy_of(), policy_of(1)
    for row, (prompt, answer) in enumerate(zip(groups.prompts, groups.answers)):
        ids, n = prompt.ids + answer, len(prompt.ids)
        assert experience.rollout.mask[row].nonzero()[:, 0].tolist() == list(range(n - 1, len(ids) - 1))
        for t, token in enumerate(answer, n - 1):
            with torch.no_grad():
                here, home = (model(torch.tensor([ids[:t + 1]]))[0, -1].double() / temperature
                              for model in (policy, reference))
            p = here.softmax(-1)
            assert experience.log_probs[row, t].item() == pytest.approx(p[token].log().item(), abs=1e-4)
            assert experience.ref_log_probs[row, t].item() == pytest.approx(home.softmax(-1)[token].log().item(), abs=1e-4)
            assert experience.entropy[row, t].item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-4)
    assert experience.rollout.ended.tolist() == [False, True, True] * 2


@pytest.mark.parametrize("normalise", [True, False])
def test_advantages_know_of_their_own_group_alone(normalise, stages):
    groups, c = hand_made(stages), config(normalise=normalise)
    advantages = make(groups, c).advantages.tolist()
    for start in (0, 3):
        own = groups.scores[start:start + 3].tolist()
        spread = statistics.pstdev(own) + 1e-4 if normalise else 1.0
        by_hand = [(one - statistics.fmean(own)) / spread for one in own]
        assert advantages[start:start + 3] == pytest.approx(by_hand, abs=1e-5)
    moved = groups._replace(scores=groups.scores + torch.tensor([0.0] * 3 + [100.0, -7.0, 3.0]))
    again = make(moved, c).advantages.tolist()
    assert again[:3] == advantages[:3] and again[3:] != advantages[3:]
    shifted = groups._replace(scores=groups.scores + torch.tensor([5.0] * 3 + [-9.0] * 3))  # a prompt's own difficulty
    assert make(shifted, c).advantages.tolist() == pytest.approx(advantages, abs=1e-4)


def learnt(experience, c, rows=None):
    """The figures of two epochs of one update each, and the weights after them."""
    policy = policy_of()
    optimizers = [torch.optim.AdamW(policy.parameters(), lr=c.lr)]
    return train_grpo.learn(policy, optimizers, experience, c, np.random.default_rng(0), ALONE), policy.state_dict()


def assert_learns_alike(one, two, c):
    (ours, weights), (theirs, expected) = (learnt(experience, c) for experience in (one, two))
    for update, other in zip(ours, theirs, strict=True):
        assert update == pytest.approx(other, rel=1e-3, abs=1e-5)
    assert all(torch.allclose(weights[name], expected[name], atol=2e-4) for name in expected)
    assert ours[0]["grad_norm"] > 1e-3 and ours[1]["drift"] > 1e-6  # there was something to learn


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_the_order_within_a_group_and_that_of_the_groups_change_nothing_that_is_learnt(aggregation, stages):
    groups, c = hand_made(stages), config(aggregation=aggregation)
    for order in ([2, 0, 1, 4, 3, 5], [3, 4, 5, 0, 1, 2], [5, 3, 4, 1, 2, 0]):
        shuffled = groups._replace(prompts=[groups.prompts[i] for i in order], answers=[groups.answers[i] for i in order],
                                   scores=groups.scores[order])
        one, two = make(groups, c), make(shuffled, c)
        assert two.advantages.tolist() == pytest.approx(one.advantages[order].tolist(), abs=1e-5)
        assert_learns_alike(two, one, c)


def test_whose_reward_it_is_is_no_matter_of_indifference(stages):
    groups, c = hand_made(stages), config()
    swapped = groups._replace(scores=groups.scores[[1, 0, 2, 3, 4, 5]])
    assert learnt(make(groups, c), c)[0][0]["loss"] != pytest.approx(learnt(make(swapped, c), c)[0][0]["loss"], abs=1e-4)


def test_padding_changes_nothing(stages):
    groups, c = hand_made(stages), config()
    one = make(groups, c)
    # Wider by a group with a long answer, from which nothing is learnt: what is known of the others stays.
    wide = groups._replace(prompts=groups.prompts + [stages.prompts[5]] * 3,
                           answers=groups.answers + [list(range(10, 40))] * 3,
                           scores=torch.cat([groups.scores, torch.ones(3)]))
    two, T = make(wide, c), one.log_probs.shape[1]
    assert two.log_probs.shape[1] > T
    assert torch.equal(two.advantages[:6], one.advantages) and not two.mask[:6, T:].any()
    assert torch.equal(two.mask[:6, :T], one.mask)
    for name in ("log_probs", "ref_log_probs", "entropy"):
        ours, theirs = getattr(two, name)[:6, :T][one.mask], getattr(one, name)[one.mask]
        assert torch.allclose(ours, theirs, atol=1e-5), name
    assert_learns_alike(two.select(torch.arange(6)), one, c)
    # Nor does it matter what stands in the padding: tokens, or numbers that are none.
    padding = torch.cat([torch.zeros(6, 1, dtype=torch.bool), ~one.mask & (one.rollout.positions[:, 1:] < 0)], 1)
    assert padding.any()
    nan = torch.where(one.mask, 0.0, torch.nan)
    three = one._replace(rollout=one.rollout._replace(tokens=one.rollout.tokens.masked_fill(padding, 77)),
                         log_probs=one.log_probs.masked_fill(padding[:, 1:], -200.0), entropy=one.entropy + nan,
                         ref_log_probs=one.ref_log_probs.masked_fill(padding[:, 1:], torch.inf))
    assert_learns_alike(three, one, c)


# ------------------------------------------------------------------------------------------------ answers without an end


def test_overlong_answers_are_scored_masked_or_penalised(stages):
    # block_size 6, margin 2: off go 0 up to 4 tokens, 1/2 at 5, 1 at 6
    answers = [[9] * 6, [9] * 4 + [END_ID], [9, END_ID], [8] * 5 + [END_ID], [8] * 3 + [END_ID], [8] * 6]
    prompts = [prompt for prompt in stages.prompts[:2] for _ in range(3)]
    groups = written(prompts, answers, [1.0, 2.0, 3.0, 4.0, 4.0, 1.0])
    score, mask, penalty = (make(groups, config(overlong=how, normalise=False)) for how in ("score", "mask", "penalty"))
    assert score.advantages.tolist() == mask.advantages.tolist() == pytest.approx([-1, 0, 1, 1, 1, -2])
    # the rewards learnt from are 0, 1.5, 3 with mean 1.5, and 3, 4, 0 with mean 7/3
    assert penalty.advantages.tolist() == pytest.approx([-1.5, 0, 1.5, 3 - 7 / 3, 4 - 7 / 3, -7 / 3], abs=1e-5)
    assert score.mask.sum(1).tolist() == penalty.mask.sum(1).tolist() == [6, 5, 2, 6, 4, 6]
    assert mask.mask.sum(1).tolist() == [0, 5, 2, 6, 4, 0]
    for experience in (score, mask, penalty):  # what is reported is the reward itself, of all answers
        assert experience.scores.tolist() == [1.0, 2.0, 3.0, 4.0, 4.0, 1.0]
        assert experience.rollout.mask.sum(1).tolist() == [6, 5, 2, 6, 4, 6]


def test_nothing_is_learnt_of_masked_answers(stages):
    groups, c = hand_made(stages), config(overlong="mask")
    kept = [i for i, answer in enumerate(groups.answers) if answer[-1] == END_ID]
    whole = make(groups, c)
    assert len(kept) == 4 and whole.mask.any(1).nonzero()[:, 0].tolist() == kept
    assert_learns_alike(whole, whole.select(torch.tensor(kept)), c)


def test_a_batch_of_nothing_but_overlong_answers_changes_nothing_and_is_survived(stages):
    prompts = [stages.prompts[0]] * 3
    groups, c = written(prompts, [[9] * 6, [8] * 6, [7] * 6], [1.0, 2.0, 3.0]), config(overlong="mask")
    updates, weights = learnt(make(groups, c), c)
    assert [update["loss"] for update in updates] == [update["grad_norm"] for update in updates] == [0.0, 0.0]
    home = policy_of().state_dict()
    assert all(torch.allclose(weights[name], home[name], atol=c.lr * 0.01 * 3 * home[name].abs().max()) for name in home)


def test_selecting_rows_takes_them_from_everything(stages):
    experience = make(hand_made(stages), config())
    part = experience.select(torch.tensor([4, 1]))
    for ours, theirs in zip((*part.rollout, *part[1:]), (*experience.rollout, *experience[1:])):
        assert torch.equal(ours, theirs[[4, 1]])


def test_neither_model_is_changed_by_looking(stages):
    policy, reference = policy_of(), policy_of(1)
    before = copy.deepcopy((policy.state_dict(), reference.state_dict()))
    experience = make_group_experience(policy, reference, hand_made(stages), config(), END_ID, torch.float32, ALONE)
    for model, state in zip((policy, reference), before):
        assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())
    assert not any(part.requires_grad for part in experience[1:])
