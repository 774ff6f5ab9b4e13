"""Names that engines and gateways have used for the same figures over time, from those of today's vLLM.

Sources: the metrics pages of vLLM 0 and 1 and of SGLang; of the endpoint picker, its names as a Kubernetes
project (by model, then by objective) and since it moved to llm-d.
"""

from collections.abc import Mapping
from enum import StrEnum


class EngineNaming(StrEnum):
    """Whose names the replicas' pages use."""

    VLLM = "vllm"
    VLLM_0 = "vllm-0"
    VLLM_PER_REQUEST = "vllm-per-request"
    SGLANG = "sglang"
    SGLANG_0 = "sglang-0"


class GatewayNaming(StrEnum):
    """Whose names the gateway's page uses."""

    STOKER = "stoker"
    INFERENCE_MODEL = "inference-model"
    INFERENCE_OBJECTIVE = "inference-objective"
    LLM_D = "llm-d"


Names = Mapping[str, str | None]
"""The name that a figure goes by; None where it is not shown. A name that is absent stays as it is."""

_SGLANG = {
    "vllm:num_requests_running": "sglang:num_running_reqs",
    "vllm:num_requests_waiting": "sglang:num_queue_reqs",
    "vllm:kv_cache_usage_perc": "sglang:token_usage",
    "vllm:request_success_total": "sglang:num_requests_total",
    "vllm:prompt_tokens_total": "sglang:prompt_tokens_total",
    "vllm:generation_tokens_total": "sglang:generation_tokens_total",
    "vllm:time_to_first_token_seconds": "sglang:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds": "sglang:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds": None,
    "vllm:e2e_request_latency_seconds": "sglang:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds": "sglang:queue_time_seconds",
    "vllm:cache_config_info": None,
}
_ENGINE: Mapping[EngineNaming, Names] = {
    EngineNaming.VLLM: {},
    EngineNaming.VLLM_0: {
        "vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc",
        "vllm:inter_token_latency_seconds": "vllm:time_per_output_token_seconds",
        "vllm:request_time_per_output_token_seconds": None,
    },
    EngineNaming.VLLM_PER_REQUEST: {"vllm:inter_token_latency_seconds": None},
    EngineNaming.SGLANG: _SGLANG,
    # Before requests were counted on their own, those that ended were counted by their latency.
    EngineNaming.SGLANG_0: _SGLANG
    | {
        "vllm:request_success_total": None,
        "vllm:inter_token_latency_seconds": "sglang:time_per_output_token_seconds",
    },
}
_GATEWAY: Mapping[GatewayNaming, tuple[str, str]] = {
    GatewayNaming.STOKER: ("stoker_gateway_requests_total", "stoker_gateway_queue"),
    GatewayNaming.INFERENCE_MODEL: (
        "inference_model_request_total",
        "inference_extension_flow_control_queue_size",
    ),
    GatewayNaming.INFERENCE_OBJECTIVE: (
        "inference_objective_request_total",
        "inference_extension_flow_control_queue_size",
    ),
    GatewayNaming.LLM_D: ("llm_d_epp_request_total", "llm_d_epp_flow_control_queue_size"),
}


def names_of(engine: EngineNaming, gateway: GatewayNaming) -> Names:
    """The names of one kind of engine and one of gateway."""
    requests, waiting = _GATEWAY[gateway]
    return {**_ENGINE[engine], "stoker_gateway_requests_total": requests, "stoker_gateway_queue": waiting}
