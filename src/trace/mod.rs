//! Spans of what is done for a request and for a token, for a collector of traces. A build without the feature `otel`
//! has the same names here and nothing behind them: they take no space, and `traceparent` passes as it came.
//!
//! A span says method, status, route name, upstream host and kind of error; never a path, a field or who asked.

#[cfg(not(feature = "otel"))]
mod absent;
#[cfg(feature = "otel")]
mod context;
#[cfg(feature = "otel")]
mod span;

#[cfg(not(feature = "otel"))]
pub use absent::{Span, Tracer};
#[cfg(feature = "otel")]
pub use span::{QUEUED_SPANS, Queue, Span, Tracer};
