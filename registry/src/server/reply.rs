//! Answers.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use super::access::{Logged, Pending};
use super::body::Body;
use super::error::{Code, Failure};
use crate::digest::Digest;

/// By this header clients tell this API from its predecessor.
const API_VERSION: (HeaderName, HeaderValue) =
    (HeaderName::from_static("docker-distribution-api-version"), HeaderValue::from_static("registry/2.0"));

/// Names the digest of what is sent or was stored.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// An answer without its log record.
pub(super) struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Body,
    /// The length announced, where that is not the body's: answers to HEAD.
    length: Option<u64>,
}

impl Reply {
    pub(super) fn empty(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), body: Body::Bytes(Bytes::new()), length: None }
    }

    pub(super) fn json(value: &impl Serialize) -> Self {
        Self::json_as("application/json", value)
    }

    pub(super) fn json_as(media_type: &str, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(text) => {
                Self::empty(StatusCode::OK).header(CONTENT_TYPE, media_type).body(Body::Bytes(text.into()))
            }
            Err(_) => Self::empty(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    /// The answer to a request that failed.
    pub(super) fn failure(failure: &Failure) -> Self {
        let (code, message, status) = failure.code().parts();
        // What the disk said is for the log: it holds paths.
        let detail = match failure {
            Failure::Refused { detail, .. } => detail.as_str(),
            Failure::Body(reason) => reason,
            Failure::Storage { .. } => "",
        };
        // Most clients show the message alone, and which other registry it is about only the detail says.
        let message = if failure.code() == Code::Elsewhere { detail } else { message };
        let mut reply =
            Self::json(&json!({"errors": [{"code": code, "message": message, "detail": detail}]}));
        reply.status = status;
        match failure.code() {
            Code::Unauthorized => {
                reply.header(WWW_AUTHENTICATE, r#"Basic realm="registry", charset="UTF-8""#)
            }
            Code::Busy | Code::Unavailable => reply.header(RETRY_AFTER, "1"),
            _ => reply,
        }
    }

    pub(super) fn method_not_allowed(methods: &[Method]) -> Self {
        let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
        Self::failure(&Failure::new(Code::Unsupported, "method")).header(ALLOW, &names.join(", "))
    }

    pub(super) fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    /// Announces `length` without sending that much.
    pub(super) fn length(mut self, length: u64) -> Self {
        self.length = Some(length);
        self
    }

    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Self {
        // All values are composed of checked names, digests and numbers; anything else is left out.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    pub(super) fn digest(self, digest: &Digest) -> Self {
        self.header(CONTENT_DIGEST, digest.as_ref())
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// The answer as it is sent, for a request of `method`, with the record to be written when it is out.
    pub(super) fn into_response(self, method: &Method, pending: Pending) -> Response<Logged> {
        let length = self.length.unwrap_or_else(|| {
            let hint = hyper::body::Body::size_hint(&self.body);
            hint.exact().unwrap_or_default()
        });
        let body = if *method == Method::HEAD { Body::Bytes(Bytes::new()) } else { self.body };
        let mut response = Response::new(Logged { body, pending });
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        let headers = response.headers_mut();
        headers.insert(API_VERSION.0, API_VERSION.1);
        if self.status != StatusCode::NO_CONTENT && self.status != StatusCode::NOT_MODIFIED {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        response
    }
}
