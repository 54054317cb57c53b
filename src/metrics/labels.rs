//! The closed sets of label values.

/// A label whose values are the variants of an enum.
pub(super) trait Label<const N: usize> {
    /// The values, in the order of the variants.
    const VALUES: [&'static str; N];
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every variant, in order.
            pub const ALL: [Self; [$($value),+].len()] = [$(Self::$variant),+];

            /// The label value.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $value,)+ }
            }
        }

        impl Label<{ $name::ALL.len() }> for $name {
            const VALUES: [&'static str; $name::ALL.len()] = [$($value),+];
        }
    };
}

labels! {
    /// Why the sidecar answered a request itself: the `code` member of its problem document.
    Code {
        BadRequest = "bad_request",
        ForbiddenPath = "forbidden_path",
        ForbiddenHost = "forbidden_host",
        ForbiddenOrigin = "forbidden_origin",
        MissingHeader = "missing_header",
        ForbiddenPeer = "forbidden_peer",
        NoRoute = "no_route",
        MethodNotAllowed = "method_not_allowed",
        BodyTooLarge = "body_too_large",
        ExpectationFailed = "expectation_failed",
        UnsupportedTransferCoding = "unsupported_transfer_coding",
        InternalError = "internal_error",
        LoopDetected = "loop_detected",
        UpstreamUnreachable = "upstream_unreachable",
        UpstreamDnsError = "upstream_dns_error",
        UpstreamTlsError = "upstream_tls_error",
        UpstreamReset = "upstream_reset",
        UpstreamProtocolError = "upstream_protocol_error",
        TokenUnavailable = "token_unavailable",
        Overloaded = "overloaded",
        Draining = "draining",
        UpstreamConnectTimeout = "upstream_connect_timeout",
        UpstreamTimeout = "upstream_timeout",
    }
}

labels! {
    /// Why no response head came from the upstream; the values are error types of RFC 9209 §2.3 where one fits.
    SendFault {
        Dns = "dns_error",
        Connect = "connection_refused",
        ConnectTimeout = "connection_timeout",
        Tls = "tls_protocol_error",
        Reset = "connection_terminated",
        Timeout = "http_response_timeout",
        Protocol = "http_protocol_error",
        /// No file descriptor was left for a connection.
        Exhausted = "connection_limit_reached",
        /// The application went away, or sent a body that broke off.
        Downstream = "downstream_aborted",
    }
}

labels! {
    /// How an attempt to connect ended.
    ConnectOutcome {
        Success = "success",
        Dns = "dns_error",
        Connect = "connect_error",
        Timeout = "timeout",
        Tls = "tls_error",
        /// No file descriptor was left.
        Exhausted = "exhausted",
    }
}

labels! {
    /// Why a token was requested.
    Trigger {
        Startup = "startup",
        Scheduled = "scheduled",
        OnDemand = "on_demand",
        Upstream401 = "upstream_401",
        /// The client credentials changed.
        Reload = "reload",
        /// An operator asked for it.
        Manual = "manual",
    }
}

labels! {
    /// How a token request ended.
    FetchOutcome {
        Success = "success",
        InvalidClient = "invalid_client",
        InvalidScope = "invalid_scope",
        UnauthorizedClient = "unauthorized_client",
        OtherOauthError = "other_oauth_error",
        HttpError = "http_error",
        Timeout = "timeout",
        NetworkError = "network_error",
        TlsError = "tls_error",
        InvalidResponse = "invalid_response",
        SecretError = "secret_error",
    }
}

labels! {
    /// What a request of the application found when it looked for a token.
    LookupResult {
        /// A usable token, no renewal under way.
        Fresh = "fresh",
        /// A usable token, past its renewal time.
        Refreshing = "refreshing",
        /// Nothing usable at first, and a token after a wait.
        Waited = "waited",
        /// Nothing usable, and none in time.
        Missing = "missing",
    }
}

labels! {
    /// What a 401 of the upstream led to, for the request that got it.
    UnauthorizedAction {
        /// The token was renewed, and the request sent once more.
        Replayed = "replayed",
        /// The token was fresh, and the request sent once more with the one before it.
        ReplayedPrevious = "replayed_previous",
        /// The answer was about the token's scope, not about the token.
        Pass = "pass",
        /// The token was renewed, and replay is off, or for another status.
        SkippedOff = "skipped_off",
        /// The token was renewed, and the body of the request was not here any more.
        SkippedBody = "skipped_body",
        /// The token was renewed, and the request might have been carried out.
        SkippedUnsafe = "skipped_unsafe",
        /// The renewal brought no other token in time.
        NoToken = "no_token",
        /// The renewal brought the same token.
        SameToken = "same_token",
        /// A renewal was due, but the limit on renewals after a 401 was reached.
        Limit = "limit",
        /// Fresh tokens are refused: no renewals for now.
        Breaker = "breaker",
    }
}

labels! {
    /// Why a request was sent to the upstream once more.
    RetryReason {
        /// The upstream refused the token.
        InvalidToken = "invalid_token",
        /// The upstream said that it did nothing about it, or it never left.
        Unprocessed = "unprocessed",
    }
}

labels! {
    /// What became of changed client credentials.
    SecretReload {
        /// A token came for them.
        Accepted = "accepted",
        /// The server does not know them; those before them are used, as long as it knows those.
        Refused = "refused",
        /// They could not be read at an attempt.
        Unreadable = "unreadable",
    }
}

labels! {
    /// What made the configuration be read again.
    ReloadTrigger {
        Signal = "signal",
        File = "file",
    }
}

labels! {
    /// What became of a configuration that was read again.
    ReloadOutcome {
        Success = "success",
        /// It is wrong, or a file it names is.
        Invalid = "invalid",
        /// A credential that is new in it brought no token.
        NoToken = "no_token",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_stand_in_the_order_of_the_variants() {
        for (index, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, index);
            assert_eq!(code.as_str(), Code::VALUES[index]);
        }
    }
}
