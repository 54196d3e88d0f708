use serde_json::Value;

/// What an HTTP server answers to a health check, whatever the method. To `HEAD` it sends no body.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// The HTTP status: 200 or 503.
    pub status: u16,
    /// Names and values of the headers that say more than the framing of the body.
    pub headers: Vec<(&'static str, String)>,
    /// JSON.
    pub body: String,
}

impl Answer {
    pub(super) fn new(healthy: bool, body: &Value) -> Self {
        Self {
            status: if healthy { 200 } else { 503 },
            headers: vec![
                ("Content-Type", "application/json".to_owned()),
                ("X-Content-Type-Options", "nosniff".to_owned()),
            ],
            body: body.to_string(),
        }
    }

    /// The value of a header. Case does not matter.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}
