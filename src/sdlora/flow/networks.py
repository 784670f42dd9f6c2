"""Which networks a job asks, as its recipe states them: the base, the captioner, and what measuring asks."""

from collections.abc import Collection, Iterable
from typing import Any

from sdlora import choices
from sdlora.config.evaluate import NETWORKS, Evaluate
from sdlora.config.params import Base, Params, Version
from sdlora.flow import inputs
from sdlora.flow.hashing import FileHashes
from sdlora.flow.makers import Seen
from sdlora.stages.caption.recipe import NOBODY
from sdlora.stages.evaluate.recipe import Describing, Learning, Network


def weights_of(base: Base, learning_rate_scale: float = 1.0, drawing: bool = False) -> Base:
    """A base without what the job does not use, so that changing that does not make it run again."""
    unused = {"captioner": "-", "captioner_revision": None}
    factor = base.guidance_scale_factor if drawing else 1.0
    return base.model_copy(
        update={**unused, "guidance_scale_factor": factor, "learning_rate_scale": learning_rate_scale}
    )


def captioner_of(version: Version, base: Base, seen: Seen) -> dict[str, str | None]:
    """Which weights describe pictures; none where nothing is said of them."""
    if version.caption.by == "none":
        return {"captioner": "-", "captioner_revision": None, "captioner_identity": NOBODY}
    weights = {"captioner": base.captioner, "captioner_revision": base.captioner_revision}
    return {**weights, "captioner_identity": seen.of(inputs.identity_of, *weights.values())}


def needs_of(metrics: Iterable[str]) -> frozenset[str]:
    """All that some metrics need."""
    return frozenset().union(*(choices.pick(choices.METRICS, name).needs for name in metrics))


def choosing(evaluate: Evaluate) -> Evaluate:
    """The section without what does not choose, so that changing that draws and chooses nothing again."""
    resamples = Evaluate.model_fields["bootstrap_samples"].default
    return evaluate.model_copy(update={"metrics": evaluate.choose_by, "bootstrap_samples": resamples})


def measurers(evaluate: Evaluate, version: Version, base: Base) -> tuple[str, ...]:
    """Menu entries that measuring uses."""
    needs = needs_of(evaluate.metrics)
    return (
        *(choices.METRICS[metric] for metric in evaluate.metrics),
        *([choices.FAMILIES[base.family]] if "learner" in needs else []),
        *([choices.CAPTIONERS[version.caption.by]] if "describe" in needs else []),
    )


def networks_of(evaluate: Evaluate, needs: Collection[str], threads: int, hashes: FileHashes) -> dict[str, Network]:
    """The networks that metrics with such needs ask, by the setting that names each."""
    found = {}
    for setting in NETWORKS:
        if setting in needs:
            model, revision = evaluate.network(setting)
            identity = inputs.identity_of(model, revision, hashes)
            found[setting] = Network(model=model, revision=revision, identity=identity, threads=threads)
    return found


def measuring(evaluate: Evaluate, params: Params, name: str, seen: Seen) -> dict[str, Any]:
    """What is measured, and the networks that are asked for it."""
    version, needs = params.versions[name], needs_of(evaluate.metrics)
    base, trigger = params.bases[version.base], params.datasets[version.dataset].trigger
    learning = Learning(
        base=weights_of(base), base_identity=seen.of(inputs.base_identity, base), threads=params.threads,
        lora_scale=version.sample.lora_scale, average=version.sample.average,
    ) if "learner" in needs else None  # fmt: skip
    describing = Describing(
        **captioner_of(version, base, seen), caption=version.caption.of_one_picture, trigger=trigger,
        threads=params.threads,
    ) if "describe" in needs else None  # fmt: skip
    networks = seen.of(networks_of, evaluate, needs, params.threads)
    measured = evaluate.without_networks
    return {"evaluate": measured, "learning": learning, "describing": describing, "networks": networks}
