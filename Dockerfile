# Three images: db, seeder and app. Because of --chmod, the umask of the clone does not matter.

FROM mysql:9.7 AS db
COPY --chmod=755 db /usr/local/bin
RUN ln -s /usr/local/bin/users.sh /docker-entrypoint-initdb.d/
# A first start may take two minutes. Failures in that time do not count.
HEALTHCHECK --interval=5s --timeout=3s --start-period=2m --start-interval=1s CMD ["probe-db.sh"]
ENTRYPOINT ["start-db.sh"]
CMD ["mysqld"]

# The packages, checked against their hashes. A change of requirements.txt builds this again.
FROM python:3.14-slim AS packages
COPY requirements.txt .
RUN pip install --no-cache-dir --require-hashes --only-binary :all: \
    --target /packages -r requirements.txt

FROM python:3.14-slim AS python
ENV PYTHONPATH=/packages
WORKDIR /cct

FROM python AS seeder
COPY --from=packages /packages/asyncmy /packages/asyncmy
COPY --chmod=444 settings.py seed.py schema.sql ./
# This import compiles all modules, including Python's own: the image has only their sources. A
# start without bytecode takes twice as long, and a read-only container could not write it.
RUN python -c "import seed"
USER 10001:10001
CMD ["python", "-m", "seed"]

FROM python AS app
COPY --from=packages /packages /packages
COPY --chmod=444 settings.py database.py server_log.py run.py server.py probe.py ./
COPY --chmod=555 page page
# The probe imports http.client.
RUN python -c "import http.client, server"
USER 10001:10001
EXPOSE 80
# A start takes a second. Failures in the first five seconds do not count.
HEALTHCHECK --interval=5s --timeout=3s --retries=3 --start-period=5s --start-interval=1s \
    CMD ["python", "-m", "probe"]
CMD ["python", "-m", "server"]
