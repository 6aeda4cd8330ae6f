"""The OpenAPI 3.1 description of the service's routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cnnlab import __version__
from cnnlab.serve.settings import Limits


def description(limits: Limits, classes: Sequence[str]) -> dict[str, Any]:
    """Return the description. It states the limits and the classes."""
    prediction = {
        "type": "object",
        "required": ["image", "top", "none_of_these"],
        "properties": {
            "image": {"type": "string", "description": "Its file name, or `image`."},
            "top": {
                "type": "array",
                "description": "The most probable classes, most probable first.",
                "items": {
                    "type": "object",
                    "required": ["label", "probability"],
                    "properties": {
                        "label": {"type": "string", "enum": list(classes)},
                        "probability": {"type": "number", "minimum": 0, "maximum": 1},
                    },
                },
            },
            "none_of_these": {
                "type": "boolean",
                "description": "Whether the first class is less probable than the threshold of `cnnlab calibrate`.",
            },
        },
    }
    bad = {
        "type": "object",
        "required": ["image", "error"],
        "properties": {"image": {"type": "string"}, "error": {"type": "string"}},
    }
    schemas = {
        "Prediction": prediction,
        "BadImage": bad,
        "Predictions": {
            "type": "object",
            "required": ["images"],
            "properties": {
                "images": {
                    "type": "array",
                    "description": "In the order of the request.",
                    "items": {"oneOf": [_ref("Prediction"), _ref("BadImage")]},
                }
            },
        },
        "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
        "Status": {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "cnnlab serve", "version": __version__, "description": "Classifies images."},
        "paths": {
            "/predict": {"post": _predict(limits)},
            "/health": {"get": _probe("health", "Whether the process is running.")},
            "/ready": {"get": _probe("ready", "Whether the service accepts images now.", 503)},
            "/metrics": {"get": _text("Metrics in the text format of Prometheus.", "metrics")},
            "/openapi.json": {"get": {
                "operationId": "openapi", "summary": "This description.",
                "responses": {"200": {"description": "OpenAPI", "content": {"application/json": {"schema": {
                    "type": "object"}}}}, **_errors(401, 403)},
            }},
            "/": {"get": _text("How to use the service, as text.", "index")},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }  # fmt: skip


def _predict(limits: Limits) -> dict[str, Any]:
    binary: dict[str, Any] = {"schema": {}}
    return {
        "operationId": "predict",
        "summary": "Classify one image, or several.",
        "description": (
            f"At most {limits.body:,} bytes, {limits.images:,} images of {limits.pixels:,} pixels and "
            f"{limits.seconds:g} seconds. A single bad image fails its "
            "request; among several images, each bad one has its own error."
        ),
        "parameters": [
            {"name": "top", "in": "query", "description": "Number of classes for each image.", "schema": {
                "type": "integer", "minimum": 1, "maximum": 999_999, "default": 3}},
        ],
        "requestBody": {"required": True, "content": {
            "image/*": binary,
            "application/octet-stream": binary,
            "multipart/form-data": {"schema": {"type": "object", "properties": {"image": {
                "type": "array", "items": {"type": "string", "contentMediaType": "application/octet-stream"}}}}},
        }},
        "responses": {
            "200": {"description": "The classes of each image.", "content": {"application/json": {
                "schema": _ref("Predictions")}}},
            **_errors(400, 401, 403, 408, 413, 415, 422, 500, 503),
        },
    }  # fmt: skip


_REASONS = {
    400: "A malformed request.",
    401: "The token is missing or wrong.",
    403: "Another Host header, or a request from another web page.",
    408: "The body arrived too slowly.",
    413: "Too many bytes, images or pixels.",
    415: "A Content-Type that is not accepted.",
    422: "The image cannot be decoded.",
    500: "The network failed.",
    503: "Busy, stopping or too slow; try again after the seconds in Retry-After.",
}


def _errors(*codes: int) -> dict[str, Any]:
    content = {"application/json": {"schema": _ref("Error")}}
    return {str(code): {"description": _REASONS[code], "content": content} for code in codes}


def _probe(name: str, summary: str, *codes: int) -> dict[str, Any]:
    """Return the description of a probe, which needs no token."""
    answer = {"description": summary, "content": {"application/json": {"schema": _ref("Status")}}}
    responses = {"200": answer, **_errors(403, *codes)}
    return {"operationId": name, "summary": summary, "security": [], "responses": responses}


def _text(summary: str, name: str) -> dict[str, Any]:
    answer = {"description": summary, "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {"operationId": name, "summary": summary, "responses": {"200": answer, **_errors(401, 403)}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
