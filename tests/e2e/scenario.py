"""A small fleet under a load that only grows, so that any replica taken away is taken away wrongly."""

FLEET = """
accelerators:
  - {name: H100, type: H100, cost_per_hour: 4}
  - {name: L40S, type: L40S, cost_per_hour: 1.5}
models:
  - name: org/small-8b
    profiles:
      - {accelerator: H100, max_batch: 64, startup_s: 30,
         parameters: {values: {alpha_s: 0.008, beta_s: 1.6e-05, gamma_s: 5.0e-07}}}
  - name: org/large-13b
    profiles:
      - {accelerator: H100, max_batch: 64, startup_s: 30,
         parameters: {values: {alpha_s: 0.012, beta_s: 2.4e-05, gamma_s: 7.5e-07}}}
service_classes:
  - name: premium
    priority: 1
    objectives:
      - {model: org/small-8b, ttft_s: 0.5, itl_s: 0.025}
      - {model: org/large-13b, ttft_s: 1.0, itl_s: 0.04}
servers:
  - {name: chat, model: org/small-8b, service_class: premium}
  - {name: notes, model: org/small-8b, service_class: premium}
  - {name: "deep/think", model: org/large-13b, service_class: premium}
capacity:
  - {type: H100, count: 40}
  - {type: L40S, count: 8}
"""

PLANT = """
seed: 3
accelerators:
  - {type: H100, count: 40}
  - {type: L40S, count: 8}
servers:
  - name: chat
    model: org/small-8b
    variants: [{accelerator: H100, accelerator_type: H100, alpha_s: 0.008, beta_s: 1.6e-05, gamma_s: 5.0e-07,
                max_batch: 64, startup_s: {median: 20, p95: 30}}]
    initial: [{accelerator: H100, replicas: 1}]
    arrivals: {kind: generated, rate_rps: [[0, 2], [1500, 12]],
               input_tokens: {mean: 600}, output_tokens: {mean: 150}}
  - name: notes
    model: org/small-8b
    variants: [{accelerator: H100, accelerator_type: H100, alpha_s: 0.008, beta_s: 1.6e-05, gamma_s: 5.0e-07,
                max_batch: 64, startup_s: {median: 20, p95: 30}}]
    initial: [{accelerator: H100, replicas: 1}]
    arrivals: {kind: generated, rate_rps: [[0, 1], [1500, 8]],
               input_tokens: {mean: 800}, output_tokens: {mean: 120}}
  - name: deep/think
    model: org/large-13b
    variants: [{accelerator: H100, accelerator_type: H100, alpha_s: 0.012, beta_s: 2.4e-05, gamma_s: 7.5e-07,
                max_batch: 64, startup_s: {median: 20, p95: 30}}]
    initial: [{accelerator: H100, replicas: 1}]
    arrivals: {kind: generated, rate_rps: [[0, 1], [1500, 6]],
               input_tokens: {mean: 700}, output_tokens: {mean: 200}}
"""

SERVERS = ("chat", "notes", "deep/think")
