"""Jobs of a Kubernetes cluster that share one volume with the command that submits them.

    snakemake --workflow-profile profiles/kubernetes -- all

`snakemake-executor-plugin-kubernetes` submits, watches and cleans up. It takes for granted that jobs share no files,
has every pod install a storage plugin from the network, and copies inputs and outputs through a bucket. A job of this
pipeline reads what the jobs before it recorded, and goes on from its own saved states: it needs the project's folder.
So here a job is the same command as on Slurm, in the folder of the project, which lies on a volume that every pod
mounts at the same path.

Snakemake finds executors by the name of a top-level package, which is why this one is not below `sdlora`.
"""

import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

try:
    import kubernetes
    from snakemake_executor_plugin_kubernetes import Executor as _Submits
    from snakemake_executor_plugin_kubernetes import ExecutorSettings

    _MISSING = False
except ModuleNotFoundError:  # Snakemake imports every executor that it finds, whichever is asked for
    _MISSING, _Submits = True, RemoteExecutor

    @dataclass
    class ExecutorSettings(ExecutorSettingsBase):  # type: ignore[no-redef, misc]
        """What the profile sets, so that Snakemake comes as far as the executor, which says what is missing."""

        persistent_volumes: list[str] = field(default_factory=list, metadata={"help": "not installed", "nargs": "+"})


common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_default_storage_provider_args=False,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=False,  # they are passed as secrets
    auto_deploy_default_storage_provider=False,
)


class Executor(_Submits):  # type: ignore[misc]  # mypy sees no types of it
    """Submits each job as a Job of batch/v1, in the project's folder."""

    def __new__(cls, *_: Any) -> "Executor":
        if _MISSING:
            raise WorkflowError("Kubernetes needs a package that is not here: snakemake-executor-plugin-kubernetes")
        return super().__new__(cls)  # type: ignore[no-any-return]

    def __post_init__(self) -> None:
        volumes = self.workflow.executor_settings.persistent_volumes
        if not any(Path.cwd().is_relative_to(volume.path) for volume in volumes):
            mounted = ", ".join(volume.unparse() for volume in volumes) or "none"
            raise WorkflowError(
                f"{Path.cwd()} lies on no volume that jobs mount ({mounted}), so they would not see the project: say "
                f"--kubernetes-volume-persistent-volumes CLAIM:/path, and be in a folder below /path"
            )
        try:
            super().__post_init__()
        except kubernetes.config.ConfigException as error:
            raise WorkflowError(f"neither KUBECONFIG, ~/.kube/config nor a pod tells of a cluster: {error}") from None

    @property
    def batchapi(self) -> Any:
        """What jobs are submitted and watched with; the plugin makes it anew when a token has expired."""
        return self._batchapi

    @batchapi.setter
    def batchapi(self, api: Any) -> None:
        submit = api.create_namespaced_job
        api.create_namespaced_job = lambda namespace, body: submit(namespace, amended(body, self._minutes))
        self._batchapi = api

    @property
    def kubeapi(self) -> Any:
        """What logs are read with."""
        return self._kubeapi

    @kubeapi.setter
    def kubeapi(self, api: Any) -> None:
        read = api.read_namespaced_pod_log

        def log(**words: Any) -> str:
            """Of the container itself: the plugin asks for one before it, which a pod that starts once never has."""
            try:
                return str(read(**{**words, "previous": False}))
            except kubernetes.client.ApiException as error:
                return f"its node says no more: {error.reason}"

        api.read_namespaced_pod_log = log
        self._kubeapi = api

    def run_job(self, job: JobExecutorInterface) -> None:
        """Submit one job."""
        self._minutes = job.resources.get("runtime")
        super().run_job(job)

    def get_job_exec_prefix(self, job: JobExecutorInterface) -> str:
        """Where the job's command runs; a pod starts in an empty folder."""
        return f"cd {shlex.quote(str(Path.cwd()))}"


def amended(body: Any, minutes: int | None) -> Any:
    """A V1Job with what the kept plugin leaves out.

    Memory is in MiB, as the preflight counts it, and not in MB; it is the limit, too, so that a job ends that takes
    what others were promised. Kubernetes takes a GPU only with a limit. Nodes for GPUs are marked in several ways.

    Args:
        body: The V1Job; it is changed.
        minutes: The rule's `runtime`.
    """
    pod = body.spec.template.spec
    (container,) = pod.containers
    asked = container.resources.requests
    if minutes is not None:
        body.spec.active_deadline_seconds = math.ceil(minutes * 60)
    if "memory" in asked:
        asked["memory"] = f"{asked['memory'].removesuffix('M')}Mi"
    for card in [name for name in asked if name.endswith("/gpu") and asked[name] == "0"]:
        del asked[card]
    cards = [name for name in asked if name.endswith("/gpu")]
    container.resources.limits = {name: asked[name] for name in asked if name in ("memory", *cards)}
    pod.tolerations = [
        kubernetes.client.V1Toleration(key=card, operator="Exists", effect="NoSchedule") for card in cards
    ]
    return body
