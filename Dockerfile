# The whole environment of HST calibration in one image. Build it with caldp-image-build, which passes the arguments and
# the secrets; a plain `docker build .` (BuildKit) works too where Docker Hub, conda-forge and the Python index are reached.
#
# Any base image will do that has Python 3.11 or newer with venv, bash, useradd and certificates.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG CONDA_IMAGE=condaforge/miniforge3
# Where the HSTCAL programs come from: conda, or none (then only COS, and mosaics of calibrated exposures, can be processed).
ARG HSTCAL_FROM=conda


# ---- HSTCAL: calacs.e, calwf3.e, cs0.e and the libraries they need, nothing else of what conda brings
FROM ${CONDA_IMAGE} AS hstcal-conda
ARG HSTCAL=stable
RUN --mount=type=secret,id=ca \
    if [ -e /run/secrets/ca ]; then export CONDA_SSL_VERIFY=/run/secrets/ca; fi; \
    case "${HSTCAL}" in stable | latest) wanted=hstcal ;; *) wanted="hstcal=${HSTCAL}" ;; esac \
    && conda create --yes --quiet --prefix /opt/hstcal --override-channels --channel conda-forge "${wanted}" \
    && find /opt/hstcal/bin ! -type d ! -name '*.e' -delete \
    && find /opt/hstcal/lib ! -type d ! -name '*.so*' -delete \
    && find /opt/hstcal -mindepth 1 -maxdepth 1 ! -name bin ! -name lib ! -name conda-meta -exec rm -rf {} + \
    && rm -rf /opt/hstcal/lib/python* \
    && find /opt/hstcal -type d -empty -delete \
    && /opt/hstcal/bin/calacs.e --version

FROM ${BASE_IMAGE} AS hstcal-none
RUN mkdir -p /opt/hstcal

FROM hstcal-${HSTCAL_FROM} AS hstcal


# ---- the Python packages that CALDP needs: a layer of its own, for they change seldom
FROM ${BASE_IMAGE} AS packages
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/caldp
COPY pyproject.toml container/constraints.txt container/requirements.txt container/packages.py /build/
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf --mount=type=secret,id=ca \
    --mount=type=cache,target=/root/.cache/pip \
    if [ -e /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    cd /build \
    && /opt/pip/bin/pip install --quiet --upgrade pip \
    && /opt/pip/bin/pip install --quiet --constraint constraints.txt --requirement requirements.txt \
    && /opt/caldp/bin/python packages.py needed pyproject.toml > needed.txt \
    && /opt/pip/bin/pip --python /opt/caldp/bin/python install --quiet --constraint constraints.txt \
        --requirement needed.txt dumb-init \
    && /opt/caldp/bin/python packages.py strip


# ---- CALDP itself, the layer that changes with its code
FROM packages AS code
COPY pyproject.toml setup.py README.rst LICENSE /src/
COPY licenses /src/licenses
COPY scripts /src/scripts
COPY caldp /src/caldp
RUN cd /tmp && /opt/pip/bin/pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir /wheels /src \
    && /opt/pip/bin/pip --python /opt/caldp/bin/python install --quiet --no-deps --no-index --no-warn-script-location \
        --prefix /installed /wheels/*.whl


# ---- what runs: no compilers, no pip, no tests
FROM ${BASE_IMAGE} AS whole
RUN useradd --create-home --home-dir /home/developer --uid 1000 --shell /bin/bash developer
COPY --from=hstcal /opt/hstcal /opt/hstcal
COPY --from=packages /opt/caldp /opt/caldp
COPY --from=code /installed /opt/caldp
ARG CSYS_VER=UNDEFINED
ENV PATH=/opt/caldp/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/hstcal/bin \
    HOME=/home/developer \
    CSYS_VER=${CSYS_VER}


# ---- what is in it, for people (VERSION) and for scanners (sbom.cdx.json)
FROM whole AS inventory
RUN --mount=type=bind,from=packages,source=/opt/pip,target=/opt/pip \
    --mount=type=bind,source=container/inventory.py,target=/build/inventory.py \
    /opt/pip/bin/python /build/inventory.py /usr/share/caldp


# ---- the image: without the places that the inventory needed
FROM whole AS runtime
COPY --from=inventory /usr/share/caldp /usr/share/caldp
LABEL org.opencontainers.image.title="caldp" \
      org.opencontainers.image.description="Calibrate Hubble Space Telescope data, as the archive does" \
      org.opencontainers.image.licenses="BSD-3-Clause"
USER developer
WORKDIR /home/developer
# As process 1 it hands signals on, and buries processes whose parents have died. It would end with 2 if there is no such
# command, which means something else here; bash ends with 127.
ENTRYPOINT ["/opt/caldp/bin/dumb-init", "--single-child", "--", "/bin/bash", "-c", "exec -- \"$@\"", "caldp"]
CMD ["caldp", "--help"]
