# One image for every service; the command says which.
FROM python:3.13-slim
WORKDIR /opt/stoker
# What is installed changes seldom and the code often: a package without code brings it, in a layer of its own.
COPY pyproject.toml constraints.txt ./
RUN mkdir schemas services && touch README.md LICENSE \
 && python -m venv . \
 && bin/pip install --no-cache-dir --constraint constraints.txt \
    '.[collector,tuner,predictor,optimizer,actuator,operator,fast]'
COPY README.md LICENSE ./
COPY schemas schemas
COPY services services
RUN bin/pip install --no-cache-dir --no-deps --force-reinstall .
# Compiled kernels are kept where any user may write; with a read-only root, mount a volume at /tmp.
ENV PATH=/opt/stoker/bin:$PATH PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/tmp/stoker-kernels \
    STOKER_HTTP__HOST=0.0.0.0 STOKER_HTTP__PORT=8080
WORKDIR /
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["stoker"]
CMD ["--help"]
