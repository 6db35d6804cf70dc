"""A decode step in which some dies only attend and others only hold experts.

The deployment is that of xDeepServe (arXiv 2508.02520, sections 3.3 and 5.2). Ranks that attend
run everything but the experts: attention, gate, the FFN of dense layers, head and sampling. They
form *domains*; the tokens of one microbatch of one domain go to the experts as one batch, which
the tables number ``microbatch * domains + domain``. With several domains the experts have work
while each domain attends, without smaller microbatches.

The messages are those of any decode step: ``dispatch`` from ranks that attend to ranks that hold
experts (A2E there), ``combine`` back (E2A). Flags go only between the two groups, from every
sender of a batch to every receiver.

A rank that attends has two streams: on the first the microbatches in turn, each up to the last of
its messages; on the second the results as they come. Attention of the next layer waits for those
of its microbatch. A rank with experts has three, as in the source: it receives, computes and
sends, in the order of the batches. Its kernels are started once, at the begin of the step, and
ask the memory for what comes; no batch starts one. All streams of a die have all its cores: what
they would take from each other is not modelled, nor are forwarding over other experts' dies
(*trampolines*: here each message goes the direct way), and a domain sends as soon as it can.

With one buffer a round of flags goes before each batch, as on any deployment: when the receivers
have emptied it. With two, a batch has a place of its own: its sender sends the next batch of the
same microbatch only when it has got the results of this one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ubfabric.decode import ATTENTION_STREAM, DecodeStep
from ubfabric.operators import CoresSpec
from ubfabric.placement import ExpertPlacement
from ubfabric.steps import ALL_MICROBATCHES, LayerPlan, Stage

#: Stream of a rank that attends, on which results come back.
RESULT_STREAM = 1
#: Streams of a rank with experts, numbered on, so that a stream does the same on every rank.
RECEIVE_STREAM, COMPUTE_STREAM, SEND_STREAM = 2, 3, 4
#: Start of the kernels of a rank with experts.
START = "start"


class DisaggregatedStep(DecodeStep):
    """Builds the chunks of a disaggregated step; parameters and errors as of :class:`Step`."""

    shares_memory = False

    def stages(self, plan: LayerPlan) -> list[Stage]:
        """Return the tasks of one rank of each group in a layer, in table order."""
        domains = self.spec.deployment.domains
        stages = [
            replace(stage, group=domain)
            for domain in range(domains)
            for stage in self._attending(plan, range(domain, self.rounds, domains))
        ]
        experts = len(self.groups) - 1
        return stages + [replace(stage, group=experts) for stage in self._holding(plan)]

    def _attending(self, plan: LayerPlan, rounds: range) -> list[Stage]:
        """Return the tasks of a rank that attends, whose microbatches have these numbers."""
        stages = self._before_attention(plan)
        if plan.label == "head":
            return stages
        for number in rounds:
            chain = self._attention_chain(plan, number)
            if plan.label == "dense":
                chain.append(Stage("ffn", number))
            else:
                chain += [Stage("gate", number), *self._sending("dispatch", number)]
            stages += [replace(stage, stream=ATTENTION_STREAM) for stage in chain]
        if plan.label != "dense":
            stages += [
                replace(stage, stream=RESULT_STREAM)
                for number in rounds
                for stage in self._receiving("combine", number)
            ]
        return stages

    def _holding(self, plan: LayerPlan) -> list[Stage]:
        """Return the tasks of a rank with experts."""
        stages = []
        if plan.first_task == 0:
            stages.append(Stage(START, ALL_MICROBATCHES, stream=RECEIVE_STREAM))
        if plan.label not in ("moe", "mtp"):
            return stages
        every = range(self.rounds)
        for stream, chains in (
            (RECEIVE_STREAM, [self._receiving("dispatch", number) for number in every]),
            (COMPUTE_STREAM, [[Stage("expert", number)] for number in every]),
            (SEND_STREAM, [self._sending("combine", number) for number in every]),
        ):
            stages += [replace(stage, stream=stream) for chain in chains for stage in chain]
        return stages

    def _sending(self, phase: str, microbatch: int) -> list[Stage]:
        """Return the stages of a dispatch or combine on the ranks that send."""
        stages = [Stage(phase, microbatch, sends=phase)]
        messages = self.spec.messages
        if messages.flag:
            flag, ready = f"{phase}-flag", f"{phase}-ready"
            stages.append(Stage(flag, microbatch, sends=flag))
            if messages.buffers == 1:
                stages.insert(0, Stage(ready, microbatch, waits=ready))
        return stages

    def _receiving(self, phase: str, microbatch: int) -> list[Stage]:
        """Return the stages of a dispatch or combine on the ranks that receive."""
        copy = Stage(f"{phase}-copy", microbatch)
        messages = self.spec.messages
        if not messages.flag:
            return [Stage(phase, microbatch, waits=phase), copy]
        flag, ready = f"{phase}-flag", f"{phase}-ready"
        stages = [
            Stage(flag, microbatch, waits=flag),
            Stage(f"{phase}-receive", microbatch, waits=phase),
            copy,
        ]
        if messages.buffers == 1:
            stages.insert(0, Stage(ready, microbatch, sends=ready))
        return stages

    def duration_ps(self, plan: LayerPlan, stage: Stage) -> int:
        """Return the time of a stage that does not depend on routing, in picoseconds."""
        if stage.kind == START:
            return self.spec.machine.launch.communication
        if stage.group == len(self.groups) - 1:
            return 0
        return super().duration_ps(plan, stage)

    def expert_ps(
        self, placement: ExpertPlacement, tokens_by_slot: np.ndarray, cores: CoresSpec | None
    ) -> np.ndarray:
        """Return the time of the experts of each rank, in picoseconds: nothing is launched."""
        times = super().expert_ps(placement, tokens_by_slot, cores)
        return times - self.times.launches_ps("expert")
