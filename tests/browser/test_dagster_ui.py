"""Dagster's UI in a real browser: the asset graph renders with its groups and no load error."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from fresh import REPOSITORY
from playwright.sync_api import Page, expect, sync_playwright

pytestmark = pytest.mark.needs("chromium")

# The browser stays inside this machine: no update checks, no component downloads.
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def dagster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`telemetry dev` on a data folder of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = tmp_path_factory.mktemp("ui") / "data"
    process = subprocess.Popen(
        [sys.executable, "-m", "telemetry_pipeline.cli", "dev", "--dagster-port", str(port)],
        cwd=REPOSITORY,
        env=os.environ | {"TELEMETRY_ROOT": str(REPOSITORY), "TELEMETRY_DATA_DIR": str(data)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        ends = time.monotonic() + 150
        while True:
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            assert time.monotonic() < ends
            try:
                if httpx.get(f"{url}/server_info", trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        yield browser.new_page(viewport={"width": 1600, "height": 1000})
        browser.close()


def test_the_asset_graph_shows_the_five_groups_and_no_load_error(
    page: Page, dagster_url: str
) -> None:
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{dagster_url}/asset-groups", wait_until="domcontentloaded")
    for group in ("raw", "staging", "intermediate", "marts", "exports"):
        expect(page.get_by_text(group, exact=True).first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Global asset lineage").first).to_be_visible()
    assert page.get_by_text("Failed to load").count() == 0
    assert page.get_by_text("Definitions loaded with errors").count() == 0
    assert problems == []


def test_the_code_location_is_loaded_and_the_sensor_is_running(
    page: Page, dagster_url: str
) -> None:
    page.goto(f"{dagster_url}/deployment/locations", wait_until="domcontentloaded")
    expect(page.get_by_text("Loaded", exact=True).first).to_be_visible(timeout=60_000)
    answer = httpx.post(
        f"{dagster_url}/graphql",
        json={
            "query": '{ sensorsOrError(repositorySelector: {repositoryName: "__repository__", '
            'repositoryLocationName: "telemetry"}) { ... on Sensors { results { name '
            "sensorState { status } } } } }"
        },
        trust_env=False,
    ).json()
    sensors = answer["data"]["sensorsOrError"]["results"]
    assert {"name": "otel_file", "sensorState": {"status": "RUNNING"}} in sensors
