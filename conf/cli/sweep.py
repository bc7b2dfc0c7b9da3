"""--multirun: one job for each combination of the swept values, by Hydra's sweeper and launcher."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any

from .arguments import read_arguments
from .config import CONF, check_config, group_options, overrides_of, register, to_dataclass
from .errors import InputError, as_input_error, exit_status, one_line
from .fields import keys_of, leaves

# run_dir is the only folder that a job writes, and Hydra's logging stays off.
SWITCHES = (
    *("hydra.sweep.dir=out/multirun", "hydra.sweep.subdir=.", "hydra.output_subdir=null", "hydra.job.chdir=false"),
    *("hydra/job_logging=disabled", "hydra/hydra_logging=disabled"),
)


def sweep(main: Callable[[Any, Any], int | None], schema: type, *, name: str, arguments: list[str], debug: bool) -> int:
    """Calls main for each job and returns the highest exit status. A user's mistake ends only its own job."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    keys = keys_of(schema)
    words, _ = read_arguments(schema, arguments, options=group_options(name), multirun=True)
    run_dirs = [word for word in words if word.startswith("run_dir=")]
    if "run_dir" in keys and not any("${" in word or "," in word for word in run_dirs):
        raise InputError("each job of a --multirun needs a run_dir of its own, for example run_dir='out/run-${seed}'")
    statuses: list[int] = []

    def job(composed: Any) -> None:
        settings: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        print(f"job {len(statuses)}: {' '.join(settings)}", file=sys.stderr)
        statuses.append(2)  # until the job ends; Hydra itself fails only before the first job

        def call() -> int | None:
            raw: Any = OmegaConf.to_container(composed, resolve=False)
            texts = {k: v for k, v in leaves(raw) if keys[k].kind in ("text", "pattern") and "${" in str(v)}
            for key in texts:  # as without --multirun, ${key} is replaced in paths and numbers, not in text
                OmegaConf.update(composed, key, "")
            values = leaves(dataclasses.asdict(to_dataclass(composed, texts)))
            paths = {k: os.path.expanduser(v) for k, v in values if keys[k].expands_home and isinstance(v, str)}
            config = to_dataclass(composed, texts | paths)
            overrides = overrides_of(config, settings)
            check_config(config, typed=overrides)
            return main(config, overrides)

        statuses[-1] = exit_status(call, debug=debug)

    sys.argv = [sys.argv[0], "--multirun", *SWITCHES, *words]  # Hydra's sweeps start from sys.argv only
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing them
    try:
        hydra.main(config_path=str(CONF), config_name=register(schema, name), version_base="1.3")(job)()
    except Exception as error:
        if statuses or isinstance(error, (HydraException, OmegaConfBaseException, OSError)):
            raise as_input_error(error) from error
        raise InputError(f"--multirun: {one_line(error)}; check the swept values and the hydra settings") from error
    if not statuses:
        raise InputError("--multirun has no job: one of the sweeps, such as range(0,0) or glob(x*), has no values")
    return max(statuses)
