# The packages, checked against the hashes in requirements.txt; built again only when that file changes.
FROM python:3.14-slim AS packages
COPY requirements.txt .
RUN pip install --no-cache-dir --require-hashes --only-binary :all: --target /packages -r requirements.txt

FROM python:3.14-slim AS base
ENV PYTHONPATH=/packages
WORKDIR /cct

FROM base AS seeder
COPY --from=packages /packages/asyncmy /packages/asyncmy
COPY settings.py seed.py schema.sql ./
# Compile all that the programs import: a container may not, and the image has the standard library as source only.
RUN python -c "import seed"
USER 10001:10001
CMD ["python", "-m", "seed"]

FROM base AS app
COPY --from=packages /packages /packages
COPY settings.py database.py server.py probe.py ./
COPY page page
RUN python -c "import http.client, server"
USER 10001:10001
EXPOSE 80
# A start takes a second; failures of its first 5 seconds do not count.
HEALTHCHECK --interval=5s --timeout=3s --retries=3 --start-period=5s --start-interval=1s CMD ["python", "probe.py"]
CMD ["python", "-m", "server"]
