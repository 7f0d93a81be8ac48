"""The service as a FastAPI application, which knows nothing of Ray: its routes, and how mistakes are answered."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, FastAPI, File, Header, HTTPException, Query, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool

from pipeline.config import RESOLUTIONS
from pipeline.errors import FeatureStoreError, Reason, Stage, TrackError, UsageError
from pipeline.search.searcher import FILTER_COLUMNS
from pipeline.service import models, page_files
from pipeline.service.audio import AudioFile, answer_with_audio, is_playable
from pipeline.service.guard import Guard
from pipeline.service.playable import PlayableCopies, UnplayableError
from pipeline.service.predictions import describe_predictions
from pipeline.service.similarity import SIMILARITY_RESOLUTION, compare_with_itself
from pipeline.service.state import Generation, ServiceState

logger = logging.getLogger(__name__)

MAX_RESULTS = 200
MAX_MAP_TRACKS = 5000

router = APIRouter(responses={status: {"model": models.Problem} for status in (400, 401, 404, 503)})


def get_state(request: Request) -> ServiceState:
    """Return the application's state."""
    state: ServiceState = request.app.state.service
    return state


State = Annotated[ServiceState, Depends(get_state)]
K = Annotated[int, Query(ge=1, le=MAX_RESULTS, description="How many tracks")]
Seconds = Annotated[float | None, Query(ge=0, allow_inf_nan=False)]
Where = Annotated[str | None, Query(max_length=2000, description="SQL over the columns that GET /info lists")]
ExcludeSame = Annotated[Literal["artist", "album"] | None, Query(description="Leave out tracks that share it")]
Resolution = Annotated[str | None, Query(description="global for whole tracks, 0.5hz for moments")]


def create_app(state: ServiceState) -> FastAPI:
    """Build the application around what it serves.

    Args:
        state: The open indexes and the model.
    """

    @asynccontextmanager
    async def follow_the_index(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(_refresh_forever(state))
        if state.uploads is not None:
            await run_in_threadpool(state.uploads.decoder.start)
        yield
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        if state.uploads is not None:
            state.uploads.decoder.stop()

    app = FastAPI(
        title="Sounds like",
        description="What sounds like this track, this moment, this file?",
        docs_url=None,  # FastAPI's own page fetches its code from elsewhere
        redoc_url=None,
        lifespan=follow_the_index,
    )
    app.state.service = state
    app.state.copies = PlayableCopies()
    app.include_router(router)
    app.include_router(page_files.router)
    app.add_exception_handler(TrackError, _explain_bad_file)
    app.add_exception_handler(FeatureStoreError, _explain_error)
    settings = state.settings
    app.add_middleware(
        Guard, access=settings.access, metrics=state.metrics, max_upload_bytes=settings.max_upload_bytes
    )
    return app


@router.get("/search/track/{track_id:path}", summary="Search by a track, or a passage of it")
def search_track(
    state: State,
    track_id: str,
    k: K = 10,
    start_s: Seconds = None,
    end_s: Seconds = None,
    where: Where = None,
    exclude_same: ExcludeSame = None,
    resolution: Resolution = None,
) -> models.Answer:
    """Find the tracks nearest to one of the catalog."""
    generation = state.generation(resolution)
    _find(generation, track_id)
    hits = generation.searcher.search_track(
        track_id, k=k, start_s=start_s, end_s=end_s, where=where, exclude_same=exclude_same
    )
    query = models.Query(track_id=track_id, start_s=start_s, end_s=end_s)
    return models.Answer(
        query=query,
        index=models.describe_index(generation.manifest),
        results=models.list_results(hits, state.generation().names),
    )


@router.post(
    "/search/audio",
    summary="Search by a file",
    responses={status: {"model": models.Problem} for status in (409, 413, 422)},
)
async def search_audio(
    state: State,
    file: Annotated[UploadFile, File(description="wav, flac, ogg, mp3, m4a or what else the catalog takes")],
    k: K = 10,
    where: Where = None,
    resolution: Resolution = None,
) -> models.Answer:
    """Find the tracks nearest to a file, which is not kept."""
    generation = state.generation(resolution)
    uploads = state.uploads
    if uploads is None:
        raise HTTPException(
            409, "this service runs without a model; start it with --checkpoint to search by audio"
        )
    with uploads.take_place():
        data = await file.read()
        is_stored = await run_in_threadpool(generation.searcher.holds_content, data)
        upload = await run_in_threadpool(uploads.embed, data, generation.manifest.resolution, is_stored)
    generation = state.generation(resolution)  # it took a while: a newer index may answer by now
    hits = await run_in_threadpool(generation.searcher.search_file, upload.file, k, where=where)
    frame_rate_hz = RESOLUTIONS[SIMILARITY_RESOLUTION].frame_rate_hz or 1.0
    return models.Answer(
        query=models.Query(file=file.filename, duration_s=upload.duration_s),
        index=models.describe_index(generation.manifest),
        results=models.list_results(hits, state.generation().names),
        similarity=models.encode_similarity(compare_with_itself(upload.frames, frame_rate_hz)),
    )


@router.get("/tracks", summary="Tracks whose title, artist or id begins with, or has, some text")
def list_tracks(
    state: State,
    prefix: Annotated[str, Query(max_length=200)] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> models.TrackList:
    """Suggest tracks by what was typed of them; case and accents do not matter."""
    names = state.generation().names
    return models.TrackList(tracks=[models.make_track(names, place) for place in names.suggest(prefix, limit)])


@router.get("/tracks/{track_id:path}/similarity", summary="A track against itself", response_model=None)
def get_similarity(state: State, track_id: str) -> models.Similarity | models.TrackFacts:
    """Return the self-similarity matrix of a track, from its 8 Hz frames, at most 256 × 256."""
    generation = state.generation()
    if generation.names.find(track_id) is None and generation.names.find(f"{track_id}/similarity") is not None:
        return get_track(state, f"{track_id}/similarity")
    _find(generation, track_id)
    try:
        matrix = state.compare_with_itself(track_id)
    except UsageError as error:
        raise HTTPException(404, "the store has no 8 Hz frames") from error
    if matrix is None:
        raise HTTPException(404, f"the store has no 8 Hz frames of {track_id}")
    return models.encode_similarity(matrix)


@router.get("/tracks/{track_id:path}/predictions", summary="What heads say of a track", response_model=None)
def get_predictions(state: State, track_id: str) -> models.Predictions | models.TrackFacts:
    """Return tags, beats, sections and chords, as `musicfm predict` wrote them."""
    generation = state.generation()
    if generation.names.find(track_id) is None and generation.names.find(f"{track_id}/predictions") is not None:
        return get_track(state, f"{track_id}/predictions")
    content = generation.index.tracks.column("content_hash")[_find(generation, track_id)].as_py()
    return describe_predictions(state.settings.store, track_id, content)


@router.get("/tracks/{track_id:path}/audio", summary="A track's file", response_model=None)
async def get_audio(
    request: Request,
    track_id: str,
    form: Annotated[Literal["flac"] | None, Query(alias="format", description="a copy for browsers")] = None,
    range_header: Annotated[str | None, Header(alias="range")] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response | models.TrackFacts:
    """Return a track's own file as the catalog names it or, made of it, a FLAC copy; or a range of its bytes."""
    state = get_state(request)
    generation = state.generation()
    if generation.names.find(track_id) is None and generation.names.find(f"{track_id}/audio") is not None:
        return get_track(state, f"{track_id}/audio")
    uri = generation.index.tracks.column("uri")[_find(generation, track_id)].as_py()
    try:
        if not uri:
            raise FileNotFoundError("the catalog has no file of this track")
        audio = await run_in_threadpool(AudioFile, uri, state.settings.audio_options)
        sent = await request.app.state.copies.get(audio) if form else audio
        return await answer_with_audio(sent, range_header, if_range)
    except FileNotFoundError as error:
        raise HTTPException(404, str(error)) from error
    except UnplayableError as error:
        raise HTTPException(422, str(error)) from error


@router.get("/tracks/{track_id:path}", summary="What is known of a track")
def get_track(state: State, track_id: str) -> models.TrackFacts:
    """Return a track's facts, and the address of its audio: a FLAC copy where browsers, as a rule, lack the codec.

    Ids may hold slashes. One that ends in `/audio` and the like is taken for that of a track without the
    ending where there is such a track.
    """
    generation = state.generation()
    position = _find(generation, track_id)
    row = generation.index.tracks.slice(position, 1).select(["duration_s", "uri"]).to_pylist()[0]
    url = state.settings.access.sign(f"/tracks/{track_id}/audio") if row["uri"] else None
    if url and not is_playable(row["uri"]):
        url += f"{'&' if '?' in url else '?'}format=flac"
    track = models.make_track(generation.names, position).model_dump()
    return models.TrackFacts(**track, duration_s=row["duration_s"], audio_url=url)


@router.get("/map", summary="The catalog as points")
def get_map(
    state: State,
    limit: Annotated[int, Query(ge=1, le=MAX_MAP_TRACKS)] = 2000,
    x_min: float = -math.inf,
    y_min: float = -math.inf,
    x_max: float = math.inf,
    y_max: float = math.inf,
) -> models.MapOfTracks:
    """Return tracks with their places on the map, of a part of it if so asked."""
    names = state.generation().names
    places, num_tracks = names.sample_map(limit, (x_min, y_min, x_max, y_max))
    return models.MapOfTracks(num_tracks=num_tracks, tracks=[models.make_track(names, place) for place in places])


@router.get("/info", summary="What this service can do")
def get_info(state: State) -> models.ServiceFacts:
    """Return the indexes that answer and the limits that hold."""
    return models.ServiceFacts(
        indexes=[models.describe_index(generation.manifest) for generation in state.generations.values()],
        columns=list(FILTER_COLUMNS),
        can_query_audio=state.uploads is not None,
        max_upload_bytes=state.settings.max_upload_bytes,
    )


@router.get("/health", summary="Whether it answers; needs no token")
def get_health() -> dict[str, str]:
    """Return that the service answers."""
    return {"status": "ok"}


@router.get("/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse)
def get_metrics(state: State) -> Response:
    """Return requests, their times, uploads that failed, and the state of the indexes."""
    return Response(state.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _refresh_forever(state: ServiceState) -> None:
    while True:
        await asyncio.sleep(state.settings.poll_interval_s)
        try:
            await run_in_threadpool(state.refresh)
        except Exception:
            logger.exception("looking for a newer index failed")


def _find(generation: Generation, track_id: str) -> int:
    position = generation.names.find(track_id)
    if position is None:
        raise HTTPException(404, f"no track {track_id!r} in the index")
    return position


def _explain_bad_file(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TrackError)
    get_state(request).metrics.failed_uploads.labels(error.reason.value).inc()
    is_ours = error.stage is not Stage.DECODE or error.reason is Reason.OUT_OF_MEMORY
    return JSONResponse({"detail": error.message, "reason": error.reason.value}, 503 if is_ours else 422)


def _explain_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, UsageError):
        return JSONResponse({"detail": str(error)}, 400)
    logger.error("%s %s: %s", request.method, request.url.path, error)
    return JSONResponse({"detail": "the store cannot be read now; the service's log says why"}, 503)
