# The packages, by the hashes of the lock: this layer is built again only when the lock changes.
FROM python:3.14-slim AS packages
COPY requirements.txt .
RUN pip install --no-cache-dir --require-hashes --only-binary :all: --target /packages -r requirements.txt

FROM python:3.14-slim AS base
COPY --from=packages /packages /packages
ENV PYTHONPATH=/packages PYTHONDONTWRITEBYTECODE=1
WORKDIR /cct

FROM base AS seeder
COPY server.py seed.py schema.sql ./
RUN python -m compileall -q .
USER 10001:10001
CMD ["python", "-m", "seed"]

FROM base AS app
COPY server.py ./
RUN python -m compileall -q .
USER 10001:10001
EXPOSE 80
# The sentence that it prints stands in the health log. No aiohttp here: a probe must be cheap.
HEALTHCHECK --interval=5s --timeout=3s --retries=3 --start-period=30s --start-interval=1s CMD ["python", "-c", "\
import http.client, os, sys;\
sys.excepthook = lambda kind, error, trace: print('no answer:', error or kind.__name__);\
client = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PORT') or 80), timeout=2);\
client.request('GET', '/health');\
answer = client.getresponse();\
print(answer.read().decode().strip());\
sys.exit(answer.status != 200)"]
CMD ["python", "-m", "server"]
