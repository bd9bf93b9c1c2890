# The device half, without torch; docs/how-to/raspberry-pi.md says how it is built and run
FROM python:3.13-slim AS build
# for the kernels; without a compiler all works, more slowly
RUN apt-get update && apt-get install --yes --no-install-recommends g++
COPY . /source
RUN python -m venv /opt/sam-edge
RUN /opt/sam-edge/bin/python -m pip install --no-cache-dir '/source[cpu]'

FROM python:3.13-slim
COPY --from=build /opt/sam-edge /opt/sam-edge
RUN useradd --create-home sam && mkdir /home/sam/work && chown sam /home/sam/work
USER sam
WORKDIR /home/sam/work
ENV PATH=/opt/sam-edge/bin:$PATH
ENTRYPOINT ["sam-edge"]
CMD ["--help"]
