# Three images: db, seeder and app. Because of --chmod, the file modes of the clone do not matter.

ARG VERSION=2.0.0

FROM mysql:9.7 AS db
ARG VERSION
LABEL org.opencontainers.image.title="cct-db" \
    org.opencontainers.image.description="MySQL with the users and passwords of cct" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.version="$VERSION"
COPY --chmod=755 db /usr/local/bin
# At the end of a first start, MySQL's image runs what is in this folder.
RUN echo "users.sh create" >/docker-entrypoint-initdb.d/create-users.sh
# On a first start, MySQL's image runs a temporary server without users and without TCP. So this
# ping over TCP fails until the real server runs. It needs no password: a refused login is an
# answer, too.
# A first start may take two minutes. Failures in that time do not count.
HEALTHCHECK --interval=5s --timeout=3s --start-period=2m --start-interval=1s \
    CMD ["mysqladmin", "--host=127.0.0.1", "--user=app", "--connect-timeout=2", "ping"]
ENTRYPOINT ["start-db.sh"]
# No binary log: nothing replicates here, and the log of a big transaction would fill /tmp.
# load-csv.sh needs local-infile.
CMD ["mysqld", "--skip-log-bin", "--local-infile"]

# The packages, checked against their hashes. A change of requirements.txt builds this again.
FROM python:3.14-slim AS packages
COPY requirements.txt .
RUN pip install --no-cache-dir --require-hashes --only-binary :all: \
    --target /packages -r requirements.txt

FROM python:3.14-slim AS python
ARG VERSION
LABEL org.opencontainers.image.title="cct" \
    org.opencontainers.image.description="A web service that heals itself" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.version="$VERSION"
ENV PYTHONPATH=/packages
WORKDIR /cct

FROM python AS seeder
COPY --from=packages /packages/asyncmy /packages/asyncmy
COPY --chmod=444 settings.py seed.py schema.sql ./
# Python writes bytecode at the first import. A read-only container cannot, so the image does. Each
# start is twice as fast.
RUN python -c "import seed"
USER 10001:10001
CMD ["python", "-m", "seed"]

FROM python AS app
COPY --from=packages /packages /packages
COPY --chmod=444 settings.py server.py probe.py ./
COPY --chmod=555 page page
RUN python -c "import server, http.client" # http.client is for the probe
USER 10001:10001
EXPOSE 80
# The engine runs the probe every 5 s. After three failures in a row, the container is unhealthy. In
# the first five seconds, until one succeeds, failures do not count, and it runs every second.
HEALTHCHECK --interval=5s --timeout=3s --retries=3 --start-period=5s --start-interval=1s \
    CMD ["python", "-m", "probe"]
CMD ["python", "-m", "server"]
