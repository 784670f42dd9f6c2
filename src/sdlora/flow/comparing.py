"""What a comparison of two versions is made from. Nobody plans all pairs: its recipe is written when it is asked for.

There is no record of its files. A recipe that says something else than before is newer than they are, so that Snakemake
makes them again; one that says the same is left alone.
"""

from collections.abc import Sequence
from pathlib import Path

from sdlora import records
from sdlora.config.evaluate import NETWORKS
from sdlora.config.params import Params
from sdlora.errors import ParamsError
from sdlora.flow import inputs, plan
from sdlora.flow.makers import Seen
from sdlora.flow.networks import needs_of
from sdlora.stages.evaluate.recipe import CompareRecipe, EvaluateRecipe

#: What its table and its page are made by.
MAKERS = ("sdlora.stages.evaluate.compare:compare", "sdlora.stages.report.page:write_comparison")


def recipe_of(params: Params, one: str, other: str) -> CompareRecipe:
    """How two versions are compared, or one and the base, which is step 0 of the other.

    Args:
        params: All settings.
        one: A version, or `base`.
        other: Likewise.

    Raises:
        ParamsError: If neither is a version, or a metric of both means another network in each.
    """
    names = [name for name in dict.fromkeys((one, other)) if name in params.versions]
    if not names:
        raise ParamsError(f"{one} is compared with itself; name a version beside it")
    _check_networks(params, names)
    sets = {name: params.versions[name].dataset for name in names}
    seen = Seen()
    recipe = CompareRecipe(
        wildcards={"one": one, "other": other}, **seen.maker(CompareRecipe, MAKERS),
        inputs=tuple(Path(EvaluateRecipe.made_pattern().format(version=name)) for name in _compared(params, names)),
        bootstrap_samples=params.versions[names[0]].evaluate.bootstrap_samples,
        versions={name: plan.summary(params.versions[name]) for name in names},
        trainings={name: tuple(params.trainings(name)) for name in names},
        references={name: plan.set_folder(of, plan.fit_name(params, name, "pad")) for name, of in sets.items()},
        datasets={name: plan.set_folder(of, plan.shown_fit(params, name)) for name, of in sets.items()},
        folders={name: plan.own_folders(params.datasets[of]) for name, of in sets.items()},
        votes=seen.of(inputs.votes_identity),
    )  # fmt: skip
    seen.save()
    return recipe


def _check_networks(params: Params, names: Sequence[str]) -> None:
    """Refuse numbers of two networks under the name of one metric."""
    sections = {name: params.versions[name].evaluate for name in names}
    shared = set.intersection(*({*section.metrics} for section in sections.values()))
    for metric in sorted(shared):
        for setting in [setting for setting in NETWORKS if setting in needs_of([metric])]:
            asked = {name: section.network(setting) for name, section in sections.items()}
            if len({*asked.values()}) > 1:
                said = ", ".join(
                    f"of {name} by {model} at {revision or 'main'}" for name, (model, revision) in asked.items()
                )
                raise ParamsError(f"{metric} is measured {said}: give both the same evaluate.{setting}")


def _compared(params: Params, names: list[str]) -> list[str]:
    """The trainings that count: all where each version has several, else each one's first."""
    found = [params.trainings(name) for name in names]
    several = all(len(trainings) > 1 for trainings in found)
    return list(dict.fromkeys(name for trainings in found for name in (trainings if several else trainings[:1])))


def write(recipe: CompareRecipe) -> None:
    """Have a comparison's recipe say what it says today."""
    if not recipe.path.exists() or recipe.path.read_bytes() != recipe.text.encode():
        records.write_text(recipe.path, recipe.text)
