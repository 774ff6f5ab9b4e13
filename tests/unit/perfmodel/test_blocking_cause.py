"""A sizing that blocking stops says CAPACITY where the share blocked is steep (size: `worst > -1e-9`)."""

import numpy as np

from services.perfmodel.law import Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import Binding, ServerModel, Targets
from services.perfmodel.queueing_models.birth_death import BirthDeathModel


def test_a_rate_that_only_blocking_stops_says_so() -> None:
    model, wrong = BirthDeathModel(), []
    for share in np.logspace(-9, -2, 60):
        for queue in (100.0, 1000.0, 10_000.0):
            for batch in (8, 64, 256):
                server = ServerModel(
                    ThreeParameterLaw(),
                    np.array([0.008, 1e-7, 0.0]),
                    Workload(10.0, 300.0),
                    Limits(batch, queue),
                )
                sizing = model.max_rate(server, Targets(max_blocked_share=share))
                capacity = float(model.analyze(server, 0.0).capacity_rps)
                if float(sizing.max_rate_rps) < capacity * (1 - 1e-6) and sizing.binding != Binding.BLOCKING:
                    wrong.append(
                        (share, queue, batch, float(sizing.max_rate_rps) / capacity, int(sizing.binding))
                    )
    assert not wrong, (len(wrong), wrong[:5])
