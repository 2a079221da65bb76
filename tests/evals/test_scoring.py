import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import DataError
from lowbit.evals.predictor import Predictor
from lowbit.evals.scoring import BatchScorer, Request, Scorer, bucket
from lowbit.llama import LlamaConfig

VOCAB = 11
CFG = LlamaConfig.from_hf(
    {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 40,
    }
)
NATS = -np.log(np.random.default_rng(0).dirichlet(np.ones(VOCAB), VOCAB)).astype(np.float32)
"""A bigram model: nats[previous, next]."""


def bigram(shapes=None):
    def make_scores(batch):
        def scores(tokens):
            assert tokens.shape[0] == batch
            if shapes is not None:
                shapes.add(tokens.shape)
            return NATS[tokens[:, :-1], tokens[:, 1:]], NATS.argmin(axis=1)[tokens[:, :-1]]

        return scores

    def refuse(*_):
        raise AssertionError

    return Predictor(CFG, {}, "numpy", refuse, make_scores, refuse)


tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)


@given(requests=st.lists(st.tuples(tokens, tokens), min_size=1, max_size=12), batch_size=st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_any_batch_gives_the_sum_over_the_continuation(requests, batch_size):
    scorer = BatchScorer(bigram(), batch_size)
    assert isinstance(scorer, Scorer)
    asked = [Request(tuple(context), tuple(continuation)) for context, continuation in requests]
    for request, found in zip(asked, scorer.log_likelihoods(asked), strict=True):
        before = [request.context[-1], *request.continuation[:-1]]
        nats = NATS[before, list(request.continuation)].astype(np.float64)
        assert found.log_likelihood == -nats.sum()  # the same float64 sum of the same float32 values
        assert found.greedy == all(NATS[a].argmin() == b for a, b in zip(before, request.continuation, strict=True))


def test_a_model_sees_few_shapes():
    shapes = set()
    requests = [Request((1,) * n, (2,)) for n in range(1, 40)]
    BatchScorer(bigram(shapes), 4).log_likelihoods(requests)
    assert shapes == {(4, 33), (4, 41)}  # the model has 40 positions
    assert [bucket(n, 500) for n in (1, 32, 33, 48, 49, 65, 97, 129, 400, 500)] == [
        *(32, 32, 48, 48, 64, 96, 128, 192, 500, 500)
    ]


def test_long_requests_lose_tokens_at_the_front():
    seen = []

    def make_scores(batch):
        def scores(tokens):
            seen.append(tokens.copy())
            return np.zeros((batch, tokens.shape[1] - 1), np.float32), np.zeros((batch, tokens.shape[1] - 1), np.int32)

        return scores

    long = tuple(i % VOCAB for i in range(60))
    BatchScorer(bigram()._replace(make_scores=make_scores), 1).log_likelihoods([Request(long, (3, 4))])
    assert seen[0][0].tolist() == [*long, 3, 4][-41:]  # 40 positions and the last target


@pytest.mark.parametrize("batch_size", [1, 3])
def test_greedy_continuations_follow_the_likeliest_token(batch_size):
    def expected(start, stop):
        out = []
        while len(out) < 7 and (not out or out[-1] != stop):
            out.append(int(NATS[(out or [start])[-1]].argmin()))
        return out

    stop = int(NATS[NATS[3].argmin()].argmin())
    contexts = [[1, 2, 3], [4], [5] * 39]
    got = BatchScorer(bigram(), batch_size).continue_greedily(contexts, 7, lambda new: new[-1] == stop)
    assert got == [expected(context[-1], stop) for context in contexts]


def test_requests_that_cannot_be_scored_are_refused():
    scorer = BatchScorer(bigram(), 2)
    for request in (Request((), (1,)), Request((1,), ())):
        with pytest.raises(DataError, match="without context or continuation"):
            scorer.log_likelihoods([request])
    with pytest.raises(DataError, match="a continuation of 41 tokens for a model of 40 positions"):
        scorer.log_likelihoods([Request((1,), (2,) * 41)])
    with pytest.raises(DataError, match="batches of 0 requests"):
        BatchScorer(bigram(), 0)
    with pytest.raises(DataError, match="40 new tokens for a model of 40 positions"):
        scorer.continue_greedily([[1]], 40, bool)
    with pytest.raises(DataError, match="a context without tokens"):
        scorer.continue_greedily([[]], 4, bool)
