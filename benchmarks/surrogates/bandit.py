"""Policies for many objectives: kernel or linear surrogate of the objectives?

A synthetic contextual bandit. A small policy network maximises the mean reward of a
subset of 16 objectives, by the exact gradient of the expected reward. Objectives come
in four themes of four; in each, the last one wants the opposite of the others. What is
predicted is the value of each objective under the policy, on contexts that it was not
trained on.

    python -m benchmarks.surrogates.bandit
"""

import torch

from benchmarks.surrogates._comparison import compare_all

N_OBJECTIVES, N_THEMES, N_ACTIONS = 16, 4, 6
N_CONTEXTS, N_FEATURES, N_HIDDEN = 100, 5, 8
N_STEPS, LEARNING_RATE, WEIGHT_DECAY = 300, 0.03, 1e-3


def contexts_and_rewards(generator):
    """Return contexts (2n, d) and rewards (2n, objective, action) in [0, 1]."""
    X = torch.randn(2 * N_CONTEXTS, N_FEATURES, generator=generator)
    shape = (N_FEATURES, N_ACTIONS)
    themes = torch.randn(N_THEMES, *shape, generator=generator)
    own = torch.randn(N_OBJECTIVES, *shape, generator=generator)
    places = torch.arange(N_OBJECTIVES)
    sign = torch.where(places // N_THEMES == N_OBJECTIVES // N_THEMES - 1, -1.0, 1.0)
    wants = sign[:, None, None] * themes[places % N_THEMES] + 0.5 * own
    return X, torch.sigmoid(torch.einsum("xd,kda->xka", X, wants))


def policies(X, params):
    """Return the probabilities (model, context, action) of a stack of policies."""
    first, second = params
    return (torch.tanh(X @ first) @ second).softmax(dim=-1)


def train(weights, X, rewards, seed):
    """Maximise the mean reward of every subset; return the stack's parameters."""
    generator = torch.Generator().manual_seed(seed)
    # every policy starts at the same place
    params = [
        (torch.randn(1, a, b, generator=generator) / a**0.5)
        .repeat(len(weights), 1, 1)
        .requires_grad_()
        for a, b in [(N_FEATURES, N_HIDDEN), (N_HIDDEN, N_ACTIONS)]
    ]
    share = torch.tensor(weights / weights.sum(axis=1, keepdims=True)).float()
    wanted = torch.einsum("mk,nka->mna", share, rewards)
    optimizer = torch.optim.AdamW(params, LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    for _ in range(N_STEPS):
        optimizer.zero_grad()
        value = (policies(X, params) * wanted).sum(dim=-1).mean(dim=1)
        (-value.sum()).backward()
        optimizer.step()
    return [p.detach() for p in params]


def main():
    X, rewards = contexts_and_rewards(torch.Generator().manual_seed(0))
    seen, new = slice(N_CONTEXTS), slice(N_CONTEXTS, None)

    def values(weights):
        params = train(weights, X[seen], rewards[seen], seed=0)
        chosen = policies(X[new], params)
        found = torch.einsum("mna,nka->mk", chosen, rewards[new]) / N_CONTEXTS
        return found.double().numpy()

    caption = "Bandit: value of each of 16 objectives"
    compare_all(
        "bandit", caption, values, N_OBJECTIVES, (0.5, 0.75, 0.9), (200, 50, 60)
    )


if __name__ == "__main__":
    main()
