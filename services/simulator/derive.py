"""A plant from a declared fleet alone: engines that run as declared, under the nominal load."""

from pydantic import ValidationError

from schemas.fleet import FleetDeclared, Model, ModelProfile, Server, startup_assumed_s
from services.simulator.plant import Plant, PlantError, faults_of

_RATE_RPS = 1.0
_INPUT_TOKENS, _OUTPUT_TOKENS = 512.0, 128.0
_TAIL = 1.3


def plant_of(fleet: FleetDeclared) -> Plant:
    """The plant of a fleet; without a nominal load a server gets one request a second, 512 tokens in, 128 out.

    Raises PlantError when a profile declares no three-parameter law, nothing declares capacity, or what is declared
    makes no plant, as where the fewest replicas of all servers do not fit.
    """
    if not fleet.capacity:
        raise PlantError("capacity: a simulated plant needs the cards of each type declared")
    models = {model.name: model for model in fleet.models}
    plant = {
        "accelerators": [{"type": c.type, "count": c.count} for c in fleet.capacity],
        "servers": [_server(fleet, server, models[server.model]) for server in fleet.servers],
    }
    try:
        return Plant.model_validate(plant)
    except ValidationError as error:
        faults = "; ".join(faults_of(error))
        raise PlantError(f"no plant follows from the fleet: {faults}; give one with --plant") from None


def _server(fleet: FleetDeclared, server: Server, model: Model) -> dict[str, object]:
    rate_rps = _RATE_RPS if server.nominal_rate_rps is None else server.nominal_rate_rps
    return {
        "name": server.name,
        "model": server.model,
        "variants": [_variant(fleet, model, profile) for profile in model.profiles],
        "initial": [{"accelerator": model.profiles[0].accelerator, "replicas": server.min_replicas}],
        "arrivals": {
            "kind": "generated",
            "rate_rps": [[0, rate_rps]],
            "input_tokens": {"mean": server.nominal_input_tokens or _INPUT_TOKENS},
            "output_tokens": {"mean": server.nominal_output_tokens or _OUTPUT_TOKENS},
        },
    }


def _variant(fleet: FleetDeclared, model: Model, profile: ModelProfile) -> dict[str, object]:
    if profile.parameters is None or profile.parameters.law != "three-parameter":
        raise PlantError(
            f"models.{model.name}.profiles.{profile.accelerator}.parameters: a simulated plant needs those of "
            f"the three-parameter law; declare them or give a plant"
        )
    accelerator = next(a for a in fleet.accelerators if a.name == profile.accelerator)
    startup_s = startup_assumed_s(profile)
    return {
        "accelerator": profile.accelerator,
        "accelerator_type": accelerator.type,
        "units": profile.accelerator_count * accelerator.multiplicity,
        **{name: profile.parameters.values[name] for name in ("alpha_s", "beta_s", "gamma_s")},
        "max_batch": profile.max_batch,
        "token_budget": profile.token_budget,
        "kv_tokens": profile.kv_tokens,
        "startup_s": {"median": startup_s, "p95": startup_s * _TAIL},
    }
