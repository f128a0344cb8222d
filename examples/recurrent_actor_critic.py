"""Balance a pole without seeing a velocity: PPO with a recurrent layer as memory.

CartPole shows two positions and two velocities. Here the velocities are hidden: one look does not
say which way the pole falls, only who remembers the last look knows. Episodes end in the middle of
rollouts, in every environment at another time.

acting    all environments, one step:  `layer.step(x, state, reset=done)`
learning  whole rollouts, one call:    `layer(x, state, reset=done)`

`python examples/recurrent_actor_critic.py` trains the agent, and beside it the same network
without memory; then it times learning by one call against the common loop, step by step.

Source: Schulman, Wolski, Dhariwal, Radford & Klimov 2017 (PPO); Schulman, Moritz, Levine, Jordan &
Abbeel 2016 (generalised advantages).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import mean
from time import perf_counter
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor, nn
from torch.distributions import Categorical

import flexrnn

GAMMA, LAMBDA = 0.99, 0.95  # of the return; of its generalised estimate
REWARD = 0.1  # what a step on which the pole stands is worth: values stay near 10
SIZES = np.array([0.5, 0.05], dtype=np.float32)  # of a usual position and angle
EPOCHS, RATE, CLIP = 4, 4e-3, 0.2
VALUE, ENTROPY = 0.5, 0.01  # their weights in the loss
LARGEST_NORM = 0.5  # of the gradient
RECENT = 100  # episodes of which the learning curve shows the mean
SCORED = 100  # episodes that judge a trained agent


class WithoutVelocities(gym.ObservationWrapper):
    """CartPole's position and angle alone, in units in which they are about 1."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))

    def observation(self, observation: Any) -> Any:
        """Of position, velocity, angle and angular velocity, the first and the third."""
        return observation[[0, 2]] / SIZES


def environments(count: int) -> VectorEnv:
    """CartPoles side by side; where one's episode ends, its next one begins in the same step."""
    return gym.make_vec(
        "CartPole-v1",
        num_envs=count,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        wrappers=[WithoutVelocities],
    )


Remember = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def at_once(layer: nn.Module, x: Tensor, state: Tensor, reset: Tensor) -> Tensor:
    """The memory's output `(T, B, H)` over whole rollouts, by one call of a FlexRNN layer."""
    return layer(x, state, reset=reset)[0]


def one_by_one(layer: nn.Module, x: Tensor, state: Tensor, reset: Tensor) -> Tensor:
    """The same by the common loop, which a layer without `reset` needs: mask, step, mask, step."""
    outputs = []
    for t in range(len(x)):
        state = state * (~reset[t]).to(state)[:, None]
        output, state = layer(x[t : t + 1], state)
        outputs.append(output)
    return torch.cat(outputs)


class Agent(nn.Module):
    """A memory and two readouts: what to do, and how much reward is still to come.

    Args:
        features: I, of an observation.
        actions: A, how many there are to choose from.
        hidden: H, units of the memory.
    """

    def __init__(self, features: int, actions: int, hidden: int):
        super().__init__()
        self.memory: Any = flexrnn.GRU(features, hidden)
        self.policy = nn.Linear(hidden, actions)
        self.value = nn.Linear(hidden, 1)

    def step(self, x: Tensor, state: Tensor, reset: Tensor) -> tuple[Categorical, Tensor, Tensor]:
        """One step of all environments: x `(B, I)`, state `(1, B, H)`, reset `(B,)`."""
        h, state = self.memory.step(x, state, reset=reset)
        return *self._read(h), state

    def forward(
        self, x: Tensor, state: Tensor, reset: Tensor, remember: Remember = at_once
    ) -> tuple[Categorical, Tensor]:
        """Whole rollouts: x `(T, B, I)`, state `(1, B, H)` before them, reset `(T, B)`."""
        return self._read(remember(self.memory, x, state, reset))

    def _read(self, h: Tensor) -> tuple[Categorical, Tensor]:
        return Categorical(logits=self.policy(h), validate_args=False), self.value(h).squeeze(-1)


class Rollout(NamedTuple):
    """T steps of B environments, each field `(T, B)` but the first two."""

    x: Tensor  # (T, B, I)
    state: Tensor  # (1, B, H), the memory before the first step
    reset: Tensor  # an episode begins with this step
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor


class Player:
    """Acts in the environments; an episode goes on from one rollout to the next.

    Args:
        agent: who acts, without a gradient.
        envs: B environments.
        seed: of the environments.
        forgetful: reset the memory before every step: the same network without a memory.
    """

    def __init__(self, agent: Agent, envs: VectorEnv, seed: int, forgetful: bool = False):
        self.agent, self.envs, self.forgetful = agent, envs, forgetful
        self.x = torch.as_tensor(envs.reset(seed=seed)[0])
        self.state = torch.zeros(1, envs.num_envs, agent.memory.hidden_size)
        self.reset = torch.ones(envs.num_envs, dtype=torch.bool)
        self.returns = torch.zeros(envs.num_envs)  # so far, of the episodes under way
        self.ended: list[float] = []  # returns of the others

    @torch.no_grad()
    def rollout(self, steps: int) -> Rollout:
        """Play so many steps in every environment."""
        before, rows = self.state, []
        for _ in range(steps):
            policy, value, state = self.agent.step(self.x, self.state, self.reset)
            action = policy.sample()
            observed, reward, fallen, cut, info = self.envs.step(action.numpy())
            self._count(reward, fallen | cut)
            reward = torch.as_tensor(REWARD * reward, dtype=value.dtype)
            if cut.any():  # for time, with the pole upright: what was to come is still worth much
                last = observed.copy()
                last[cut] = np.stack(info["final_obs"][cut])
                to_come = self._value(torch.as_tensor(last), state, np.zeros_like(cut))
                reward += GAMMA * to_come * torch.as_tensor(cut)
            done = torch.as_tensor(fallen | cut)
            rows.append((self.x, self.reset, action, policy.log_prob(action), value, reward, done))
            self.x, self.state, self.reset = torch.as_tensor(observed), state, self._reset(done)
        x, reset, action, log_prob, value, reward, done = map(torch.stack, zip(*rows, strict=True))
        after = self._value(self.x, self.state, done[-1].numpy())
        advantage = advantages(reward, torch.cat([value, after[None]]), done)
        return Rollout(x, before, reset, action, log_prob, value, advantage)

    def _value(self, x: Tensor, state: Tensor, done: Any) -> Tensor:
        return self.agent.step(x, state, self._reset(torch.as_tensor(done)))[1]

    def _reset(self, done: Tensor) -> Tensor:
        return torch.ones_like(done) if self.forgetful else done

    def _count(self, reward: Any, done: Any) -> None:
        self.returns += torch.as_tensor(reward)
        self.ended += self.returns[torch.as_tensor(done)].tolist()
        self.returns[torch.as_tensor(done)] = 0


def advantages(reward: Tensor, value: Tensor, done: Tensor) -> Tensor:
    """How much better each action was than expected: generalised advantages, `(T, B)`.

    Args:
        reward: `(T, B)`.
        value: `(T + 1, B)`, the last row of what comes after the rollout.
        done: `(T, B)`, the episode ends with this step: nothing behind it counts.

    Example:
        >>> import torch
        >>> from recurrent_actor_critic import advantages
        >>> reward, value = torch.ones(3, 1), torch.tensor([[0.0], [0.0], [0.0], [7.0]])
        >>> advantages(reward, value, torch.tensor([[False], [True], [True]])).flatten()
        tensor([1.9405, 1.0000, 1.0000])
    """
    goes_on = (~done).to(value)
    surprise = reward + GAMMA * goes_on * value[1:] - value[:-1]
    found, behind = torch.empty_like(reward), torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        found[t] = behind = surprise[t] + GAMMA * LAMBDA * goes_on[t] * behind
    return found


def loss(agent: Agent, rollout: Rollout, remember: Remember = at_once) -> Tensor:
    """PPO's clipped loss, with the value's squared error and the entropy."""
    policy, value = agent(rollout.x, rollout.state, rollout.reset, remember)
    ratio = (policy.log_prob(rollout.action) - rollout.log_prob).exp()
    a = (rollout.advantage - rollout.advantage.mean()) / (rollout.advantage.std() + 1e-8)
    gain = torch.min(ratio * a, ratio.clamp(1 - CLIP, 1 + CLIP) * a).mean()
    error = (value - rollout.value - rollout.advantage).square().mean()
    return VALUE * error - gain - ENTROPY * policy.entropy().mean()


@dataclass
class Run:
    """What one agent has done so far."""

    label: str
    agent: Agent
    steps: int = 0  # of all environments together
    acting: float = 0.0  # seconds
    learning: float = 0.0  # seconds
    curve: list[tuple[int, float]] = field(default_factory=list)  # steps, mean recent return
    score: float | None = None  # mean return of the trained agent


@dataclass(frozen=True)
class Options:
    """What the command line was asked for; the defaults take about a minute."""

    steps: int = 200_000
    envs: int = 16
    rollout: int = 64
    hidden: int = 64
    seed: int = 0
    threads: int = 1
    backend: str = "auto"

    @property
    def together(self) -> int:
        """Steps of all environments in one rollout."""
        return self.envs * self.rollout

    @property
    def rollouts(self) -> int:
        """How many; the last one is whole, too."""
        return -(-self.steps // self.together)


def learn(options: Options, forgetful: bool = False) -> Iterator[Run]:
    """Train an agent; yields the same `Run`, which has grown, after every rollout."""
    torch.manual_seed(options.seed)
    envs = environments(options.envs)
    agent = Agent(2, 2, options.hidden)
    optimizer = torch.optim.Adam(agent.parameters(), lr=RATE, eps=1e-5)
    player = Player(agent, envs, options.seed, forgetful)
    run = Run("without memory" if forgetful else "with memory", agent)
    for n in range(options.rollouts):
        began = perf_counter()
        rollout = player.rollout(options.rollout)
        played = perf_counter()
        optimizer.param_groups[0]["lr"] = RATE * (1 - n / options.rollouts)
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            loss(agent, rollout).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), LARGEST_NORM)
            optimizer.step()
        run.acting += played - began
        run.learning += perf_counter() - played
        run.steps += options.together
        if player.ended:
            run.curve.append((run.steps, mean(player.ended[-RECENT:])))
        yield run
    run.score = score(agent, options.seed + 1, forgetful)
    envs.close()


@torch.no_grad()
def score(agent: Agent, seed: int, forgetful: bool = False, episodes: int = SCORED) -> float:
    """Mean return of so many episodes, each from its beginning, by the likeliest actions."""
    envs = environments(episodes)
    x, total = envs.reset(seed=seed)[0], 0.0
    state = torch.zeros(1, episodes, agent.memory.hidden_size)
    reset, running = np.ones((2, episodes), dtype=bool)
    while running.any():
        policy, _, state = agent.step(torch.as_tensor(x), state, torch.as_tensor(reset))
        x, reward, fallen, cut, _ = envs.step(policy.probs.argmax(-1).numpy())
        total += reward[running].sum()
        running &= ~(fallen | cut)
        reset = reset if forgetful else fallen | cut
    envs.close()
    return float(total / episodes)


if __name__ == "__main__":
    # Apart, since nothing of it is about learning: options, bars, times and the page.
    from recurrent_actor_critic_command import main

    main()
