//! Where spans go, by the standard variables of OpenTelemetry.

use crate::secret::Secret;

/// The variables `OTEL_…` that mean something here.
#[derive(Clone, Debug, Default)]
pub struct Otel {
    endpoint: Option<String>,
    traces_endpoint: Option<String>,
    service_name: Option<String>,
    headers: Option<Secret>,
    is_disabled: bool,
}

impl Otel {
    /// Takes a variable, if it is one of them. An empty one is as none.
    pub(super) fn take(&mut self, name: &str, value: &str) {
        let text = || Some(value.to_owned()).filter(|value| !value.is_empty());
        match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => self.endpoint = text(),
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => self.traces_endpoint = text(),
            "OTEL_SERVICE_NAME" => self.service_name = text(),
            "OTEL_EXPORTER_OTLP_HEADERS" => self.headers = text().map(Secret::new),
            "OTEL_SDK_DISABLED" => self.is_disabled = value.eq_ignore_ascii_case("true"),
            _ => {}
        }
    }

    /// The URL that spans are sent to; none if they are not.
    pub fn traces_url(&self) -> Option<String> {
        if self.is_disabled {
            return None;
        }
        let base = self.endpoint.as_ref();
        let below = base.map(|base| format!("{}/v1/traces", base.trim_end_matches('/')));
        self.traces_endpoint.clone().or(below)
    }

    /// What this process is called.
    pub fn service_name(&self) -> &str {
        self.service_name.as_deref().unwrap_or("bearerd")
    }

    /// `name=value,…`, percent-encoded; fields of each request to the collector.
    pub fn headers(&self) -> Option<&Secret> {
        self.headers.as_ref()
    }
}
