//! What agents fetch, below `/agents/v1`: manifests, chunks and files of firmware, by their digests.

use axum::{
    Extension, Router,
    body::Body,
    extract::{self, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use object_store::{ObjectStoreExt as _, path::Path as ObjectPath};
use rackhand_common::pki::{Peer, Role};

use super::{Images, chunk_path, firmware_path, is_sha256, manifest_path};
use crate::store::StoreError;

/// Every request must carry `Option<Peer>` in its extensions, put there by the TLS server; only
/// a registered agent is answered.
pub(super) fn router(images: &Images) -> Router {
    Router::new()
        .route("/agents/v1/chunks/{digest}", get(serve_chunk))
        .route("/agents/v1/manifests/{digest}", get(serve_manifest))
        .route("/agents/v1/firmware/{sha256}", get(serve_firmware))
        .layer(axum::middleware::from_fn_with_state(images.clone(), agents_only))
        .with_state(images.clone())
}

/// Lets through whom the agents' listener would serve too: a registered agent that is not
/// revoked, as of this request.
async fn agents_only(
    State(images): State<Images>,
    peer: Option<Extension<Option<Peer>>>,
    request: extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let Some(Extension(Some(Peer::Certified(Role::Agent { agent, rack })))) = peer else {
        return (StatusCode::UNAUTHORIZED, "this needs the certificate of an enrolled agent\n").into_response();
    };
    match images.0.store.agent(agent).await {
        Ok(known) if known.rack == rack && known.revoked.is_none() => next.run(request).await,
        Ok(_) | Err(StoreError::NotFound(_)) => {
            (StatusCode::FORBIDDEN, "this agent is revoked: enrol its node again\n").into_response()
        }
        Err(error) => {
            tracing::error!(%agent, error = &error as &dyn std::error::Error, "the database fails");
            (StatusCode::SERVICE_UNAVAILABLE, "the database fails\n").into_response()
        }
    }
}

async fn serve_chunk(State(images): State<Images>, extract::Path(digest): extract::Path<String>) -> Response {
    serve(&images, digest.parse().ok().map(chunk_path), "application/zstd").await
}

async fn serve_manifest(State(images): State<Images>, extract::Path(digest): extract::Path<String>) -> Response {
    serve(&images, digest.parse().ok().map(manifest_path), "application/json").await
}

async fn serve_firmware(State(images): State<Images>, extract::Path(sha256): extract::Path<String>) -> Response {
    serve(&images, is_sha256(&sha256).then(|| firmware_path(&sha256)), "application/octet-stream").await
}

async fn serve(images: &Images, path: Option<ObjectPath>, kind: &'static str) -> Response {
    let Some(path) = path else {
        return (StatusCode::BAD_REQUEST, "not a digest\n").into_response();
    };
    match images.0.objects.get(&path).await {
        Ok(object) => {
            let len = object.meta.size;
            let headers = [
                (header::CONTENT_TYPE, kind.to_owned()),
                (header::CONTENT_LENGTH, len.to_string()),
                (header::CACHE_CONTROL, "immutable".to_owned()),
            ];
            (headers, Body::from_stream(object.into_stream())).into_response()
        }
        Err(object_store::Error::NotFound { .. }) => (StatusCode::NOT_FOUND, "no such object\n").into_response(),
        Err(error) => {
            tracing::error!(%path, error = &error as &dyn std::error::Error, "the object store failed");
            (StatusCode::INTERNAL_SERVER_ERROR, "the object store failed\n").into_response()
        }
    }
}
