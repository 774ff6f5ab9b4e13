# One image for every service; the command says which.
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY schemas schemas
COPY services services
RUN python -m venv /opt/stoker \
 && /opt/stoker/bin/pip install --no-cache-dir --constraint constraints.txt \
    '.[collector,tuner,predictor,optimizer,actuator,operator,fast]'

FROM python:3.13-slim
COPY --from=build /opt/stoker /opt/stoker
# Compiled kernels are kept where any user may write; with a read-only root, mount a volume at /tmp.
ENV PATH=/opt/stoker/bin:$PATH PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/tmp/stoker-kernels \
    STOKER_HTTP__HOST=0.0.0.0 STOKER_HTTP__PORT=8080
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["stoker"]
CMD ["--help"]
