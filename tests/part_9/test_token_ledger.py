"""Lesson 9.5: every column of the ledger, computed once more in another way: passes over one answer, sums, and loops."""

import copy
import math
import statistics

import pytest
import torch

from part_0.cli import InputError
from part_6.prompt_template import encode_chat
from part_8.policy import ActorCritic
from part_8.ppo_config import Config as PPOConfig
from part_8.stages import load_stages
from part_9.demo_token_ledger import Config, load_run
from part_9.grpo_config import Config as GRPOConfig
from part_9.token_ledger import COLUMNS, choice_columns, loss_mask, table_lines, take_steps, token_names
from tests.part_8.tiny_stages import TOKENIZER, make_reward_model, make_sft, tiny_model

G, N_PROMPTS, N_NEW = 3, 4, 8
BETA, LAM, CLIP = 0.3, 0.8, 0.1


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    """A step of both trainers on answers of a tiny policy that is neither the reference nor has values of 0: a dict."""
    path = tmp_path_factory.mktemp("stages")
    policy, critic = tiny_model(3), tiny_model(4)
    reference = tiny_model()
    with torch.no_grad():
        for model in (policy, critic, reference):
            model.head.weight.mul_(10)
            model.token_embedding.weight.mul_(2)
    shared = dict(sft=str(make_sft(path / "sft.pt", reference)), reward_model=str(make_reward_model(path / "rm.pt")),
                  batch_size=G * N_PROMPTS, minibatch_size=5, block_size=N_NEW, n_prompts=12, n_tasks=0, epochs=3, lr=0.01,
                  min_lr=0.0, device="cpu", clip=CLIP, no_end_penalty=0.5)
    ppo = PPOConfig(**shared, beta=BETA, lam=LAM, kl_stop=0.0, n_held_out=N_PROMPTS)
    grpo = GRPOConfig(**shared, group_size=G)
    stages = load_stages(ppo, torch.device("cpu"))
    model = ActorCritic(policy, critic)
    with torch.no_grad():
        model.value.weight.normal_(generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(model)
    experience, group, (after_ppo, after_grpo) = take_steps(model, stages, stages.held_out, ppo, grpo)
    columns = choice_columns(experience, group, after_ppo, after_grpo, ppo, grpo)
    return dict(stages=stages, before=before, model=model, experience=experience, columns=columns, ppo=ppo, grpo=grpo,
                group=group)


def own_pass(model, tokens, first):
    """The log-probabilities of tokens[first:] by one pass over them alone, (n,) in fp64."""
    with torch.no_grad():
        logits = model(tokens[None])[0].double()
    return torch.stack([torch.log_softmax(logits[t - 1], 0)[tokens[t]] for t in range(first, len(tokens))])


def rows(ledger):
    """Of each answer: its number, all its tokens, the place of its first one, and its columns, a list of N each."""
    experience = ledger["experience"]
    for row, answer in enumerate(experience.rollout.answers()):
        prompt = ledger["stages"].held_out[row // G].ids
        mask = experience.rollout.mask[row]
        yield row, torch.tensor(prompt + answer), len(prompt), {
            name: column[row][mask].double() for name, column in ledger["columns"].items()}


def test_columns_are_those_of_the_table():
    assert list(COLUMNS)[:3] == ["id", "text", "loss"]


def test_log_probabilities_are_those_of_a_pass_over_each_answer_alone(ledger):
    kl = 0.0
    for _, tokens, first, own in rows(ledger):
        policy, reference = (own_pass(model, tokens, first)
                             for model in (ledger["before"].policy, ledger["stages"].reference))
        torch.testing.assert_close(own["log pi"], policy, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(own["log ref"], reference, atol=1e-4, rtol=1e-4)
        kl = max(kl, own["k1"].abs().max().item())
        for place, (k1, k3) in enumerate(zip(own["k1"].tolist(), own["k3"].tolist())):
            difference = (policy - reference)[place].item()
            assert k1 == pytest.approx(difference, abs=2e-4)
            assert k3 == pytest.approx(math.exp(-difference) - 1 + difference, rel=2e-3, abs=2e-3)
    assert kl > 0.5


def test_rewards_of_an_answer_add_up_to_its_score_less_the_price_of_its_divergence(ledger):
    reward_model, end = ledger["stages"].reward_model, ledger["stages"].stop_ids[0]
    for _, tokens, first, own in rows(ledger):
        answer = torch.zeros(1, len(tokens), dtype=torch.bool)
        answer[0, first:] = True
        with torch.no_grad():
            score = reward_model(tokens[None], torch.arange(len(tokens))[None], answer).item()
        score -= 0.5 * (tokens[-1].item() != end)
        assert not own["score"][:-1].any()
        assert own["score"][-1].item() == pytest.approx(score, abs=1e-4)
        assert own["r"].sum().item() == pytest.approx(score - BETA * own["k1"].sum().item(), abs=1e-4)


def test_whitened_rewards_have_spread_1_over_all_choices_and_the_mean_they_had(ledger):
    raw, white = (torch.cat([own[name] for *_, own in rows(ledger)]).tolist() for name in ("r", "r white"))
    mean, spread = statistics.fmean(raw), statistics.pstdev(raw)
    assert white == pytest.approx([(r - mean) / spread + mean for r in raw], abs=1e-4)


def test_ppo_s_advantage_is_the_double_sum_of_its_definition_then_whitened(ledger):
    sums = []
    for _, tokens, first, own in rows(ledger):
        reward, value = own["r white"].tolist(), own["V"].tolist()
        with torch.no_grad():
            hidden = ledger["before"].critic.hidden_states(tokens[None])[0]
            own_values = (hidden @ ledger["before"].value.weight[0] + ledger["before"].value.bias)[first - 1:-1].tolist()
        assert value == pytest.approx(own_values, abs=1e-3)
        n = len(reward)
        expected = [sum(LAM ** (s - t) * (reward[s] + (value[s + 1] if s + 1 < n else 0.0) - value[s]) for s in range(t, n))
                    for t in range(n)]
        assert own["GAE"].tolist() == pytest.approx(expected, abs=1e-3)
        sums += expected
    mean, spread = statistics.fmean(sums), statistics.pstdev(sums)
    assert torch.cat([own["A ppo"] for *_, own in rows(ledger)]).tolist() == pytest.approx(
        [(a - mean) / spread for a in sums], abs=1e-3)


def test_grpo_s_advantage_is_the_distance_from_the_group_s_mean_in_spreads_the_same_for_all_tokens(ledger):
    scores = ledger["experience"].scores.tolist()
    for row, *_, own in rows(ledger):
        group = scores[row // G * G:row // G * G + G]
        expected = (scores[row] - statistics.fmean(group)) / (statistics.pstdev(group) + 1e-4)
        assert own["A grpo"].tolist() == pytest.approx([expected] * len(own["A grpo"]), rel=1e-3)


def test_ratios_and_clipping_are_those_of_the_policy_after_the_updates(ledger):
    n_clipped = 0
    for _, tokens, first, own in rows(ledger):
        new = own_pass(ledger["model"].policy, tokens, first)
        torch.testing.assert_close(own["rho ppo"], (new - own["log pi"]).exp(), atol=1e-3, rtol=1e-3)
        for trainer in ("ppo", "grpo"):
            for rho, advantage, clipped in zip(*(own[f"{name} {trainer}"].tolist() for name in ("rho", "A", "clip"))):
                assert clipped == (rho > 1 + CLIP and advantage > 0 or rho < 1 - CLIP and advantage < 0)
                n_clipped += clipped
    assert n_clipped > 10
    assert not torch.allclose(ledger["columns"]["rho ppo"], ledger["columns"]["rho grpo"], atol=0.01)


def test_experiences_of_different_answers_are_refused(ledger):
    group = ledger["group"].select(torch.tensor([1, 0, *range(2, G * N_PROMPTS)]))
    with pytest.raises(ValueError, match="different answers"):
        choice_columns(ledger["experience"], group, *[ledger["columns"]["log pi"]] * 2, ledger["ppo"], ledger["grpo"])


def test_the_loss_mask_is_that_of_the_conversation_when_fine_tuned():
    question, answer = {"role": "user", "content": "Sort: red cup"}, {"role": "assistant", "content": "cup red"}
    ids, learnt = encode_chat([question, answer], TOKENIZER)
    first = learnt.index(True)
    assert loss_mask(ids[:first], ids[first:]) == learnt


def test_the_table_has_a_line_a_token_of_one_length_and_no_more_than_150_characters(ledger):
    _, tokens, first, own = next(rows(ledger))
    own = {name: column.bool() if name.startswith("clip") else column for name, column in own.items()}
    ids = tokens.tolist()
    names = token_names(ids, TOKENIZER)
    answer = table_lines(ids[first:], names[first:], [True] * len(ids[first:]), own)
    prompt = table_lines(ids[:first], names[:first], [False] * first, {}, heading=False)
    assert len(prompt) == first and len(answer) == 2 + len(ids) - first
    assert len({len(line) for line in prompt + answer}) == 1 and len(answer[0]) <= 150
    assert all(name in answer[0] for name in COLUMNS) and "\n" not in "".join(prompt + answer)


def test_a_run_without_a_checkpoint_that_holds_the_critic_names_the_trainer(tmp_path):
    make_sft(tmp_path / "best.pt")  # the policy alone
    with pytest.raises(InputError, match="python3 part_8/train_ppo.py"):
        load_run(Config(run=str(tmp_path)), torch.device("cpu"))
    make_sft(tmp_path / "step_00000001.pt")
    with pytest.raises(InputError, match="no checkpoint of part_8"):
        load_run(Config(run=str(tmp_path), sft=str(tmp_path / "best.pt")), torch.device("cpu"))
