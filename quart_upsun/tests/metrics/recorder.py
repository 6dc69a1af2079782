"""An observer that keeps what it gets."""

from quart import Quart

from quart_upsun.measure import JobMeasure, RequestMeasure


class Recorder:
    """Keeps the measures of an application's requests and jobs."""

    def __init__(self, app: Quart) -> None:
        self.requests: list[RequestMeasure] = []
        self.jobs: list[JobMeasure] = []
        app.extensions["quart_upsun"].observers.append(self)

    def on_request(self, measure: RequestMeasure) -> None:
        """Keep the measure of a request."""
        self.requests.append(measure)

    def on_job(self, measure: JobMeasure) -> None:
        """Keep the measure of a job."""
        self.jobs.append(measure)
