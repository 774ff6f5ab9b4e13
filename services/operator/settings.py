"""Settings of the operator."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from services.cluster.client import ClusterSettings
from services.cluster.workloads import WORKLOADS, AcceleratorNames, Resource
from services.runtime.settings import RuntimeSettings


class OperatorSettings(BaseModel):
    """Whose custom resources are the fleet."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    cluster: ClusterSettings = ClusterSettings()
    """The cluster that holds the custom resources."""
    namespace: str | None = None
    """Namespace whose resources are the fleet, and the workloads that they name; by default those of all namespaces
    are one fleet."""
    workloads: tuple[Resource, ...] = WORKLOADS
    """Resources that a Server's scaleTargetRef may name, each as group/version/plural; the collector's setting of the
    same name. With none of them the operator needs no rights on workloads."""
    accelerators: AcceleratorNames = AcceleratorNames()
    """How pods say which accelerators they want; the collector's setting of the same name."""
    ask_again_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Control seconds after which a plan that did not come is asked for again; well above what a solve takes."""


class Settings(RuntimeSettings):
    """Settings of the operator's process."""

    operator: OperatorSettings = OperatorSettings()
    """Whose custom resources are the fleet."""
