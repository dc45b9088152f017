//! The bootable image that BMCs put into their machines' virtual drives, in whole or in parts (RFC 9110
//! §14): a BMC reads it as its machine reads the drive.

use std::{ops::RangeInclusive, path::PathBuf};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::http::ServedFile;

/// A file that is served in parts; clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Media(ServedFile);

impl Media {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(ServedFile::new(path))
    }

    /// Serves this file from now on.
    pub(super) fn become_file(&self, path: PathBuf) {
        self.0.become_file(path);
    }

    /// What of it is asked for.
    pub(super) async fn answer(&self, headers: &HeaderMap) -> Response {
        let bytes = match self.0.bytes().await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(%error, "a BMC asks for the bootable image, and there is none (`media` in boot.toml)");
                return StatusCode::NOT_FOUND.into_response();
            }
        };
        let common = [
            (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
            (header::ACCEPT_RANGES, HeaderValue::from_static("bytes")),
        ];
        let len = bytes.len();
        match headers.get(header::RANGE).and_then(|range| range.to_str().ok()).map(|range| part(range, len)) {
            None | Some(Part::Whole) => (common, Body::from(bytes)).into_response(),
            Some(Part::None) => {
                (StatusCode::RANGE_NOT_SATISFIABLE, [(header::CONTENT_RANGE, format!("bytes */{len}"))]).into_response()
            }
            Some(Part::Of(range)) => {
                let told = format!("bytes {}-{}/{len}", range.start(), range.end());
                let part = bytes.slice(range);
                (StatusCode::PARTIAL_CONTENT, common, [(header::CONTENT_RANGE, told)], Body::from(part)).into_response()
            }
        }
    }
}

/// What a `Range` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// All of it: also what is not understood, or more than one part.
    Whole,
    /// These bytes.
    Of(RangeInclusive<usize>),
    /// Nothing that there is.
    None,
}

fn part(range: &str, len: usize) -> Part {
    let Some((first, last)) = range.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Part::Whole;
    };
    let end = len.saturating_sub(1);
    let range = match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
        (Ok(first), Ok(last)) if first <= last => first..=last.min(end),
        (Ok(first), Err(_)) if last.trim().is_empty() => first..=end,
        (Err(_), Ok(tail)) if first.trim().is_empty() && tail > 0 => len.saturating_sub(tail)..=end,
        _ => return Part::Whole,
    };
    if len == 0 || *range.start() >= len { Part::None } else { Part::Of(range) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test]
    async fn a_bmc_gets_the_whole_or_the_part_it_asks_for() {
        let dir = tempfile::tempdir().unwrap();
        let media = Media::new(dir.path().join("boot.iso"));
        assert_eq!(media.answer(&HeaderMap::new()).await.status(), StatusCode::NOT_FOUND);
        std::fs::write(dir.path().join("boot.iso"), b"0123456789").unwrap();
        for (asked, status, bytes, told) in [
            (None, 200, "0123456789", None),
            (Some("bytes=2-4"), 206, "234", Some("bytes 2-4/10")),
            (Some("bytes=8-99"), 206, "89", Some("bytes 8-9/10")),
            (Some("bytes=7-"), 206, "789", Some("bytes 7-9/10")),
            (Some("bytes=-3"), 206, "789", Some("bytes 7-9/10")),
            (Some("bytes=10-11"), 416, "", Some("bytes */10")),
            (Some("bytes=0-1,3-4"), 200, "0123456789", None),
            (Some("lines=1-2"), 200, "0123456789", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(asked.map(|asked| (header::RANGE, HeaderValue::from_static(asked))));
            let answer = media.answer(&headers).await;
            assert_eq!(answer.status().as_u16(), status, "{asked:?}");
            let range = answer.headers().get(header::CONTENT_RANGE).map(|range| range.to_str().unwrap().to_owned());
            assert_eq!(range.as_deref(), told, "{asked:?}");
            let body = axum::body::to_bytes(answer.into_body(), 100).await.unwrap();
            assert_eq!(&body[..], bytes.as_bytes(), "{asked:?}");
        }
    }

    proptest! {
        #[test]
        fn no_range_reaches_beyond_the_file(range in ".{0,40}|bytes=[0-9]{0,25}-[0-9]{0,25}", len in 0..50_usize) {
            if let Part::Of(part) = part(&range, len) {
                prop_assert!(part.start() <= part.end() && *part.end() < len);
            }
        }
    }
}
