use std::num::NonZeroU16;

use serde_json::json;

use super::Answer;
use crate::model::ObjectName;

/// What a health-check node port tells of its Service ([H1]): type LoadBalancer with policy `Local`.
///
/// [H1]: crate::health
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceHealth {
    /// The Service.
    pub service: ObjectName,
    /// Its `healthCheckNodePort`.
    pub port: NonZeroU16,
    /// How many distinct addresses its ready endpoints on this node have, over all its ports ([H3]).
    ///
    /// [H3]: crate::health
    pub local_endpoints: usize,
}

impl ServiceHealth {
    /// The answer at its port, given the proxy's health without the node's state.
    pub fn answer(&self, proxy_healthy: bool) -> Answer {
        let body = json!({
            "service": { "namespace": &**self.service.namespace(), "name": &**self.service.name() },
            "localEndpoints": self.local_endpoints,
            "serviceProxyHealthy": proxy_healthy,
        });
        let mut answer = Answer::new(self.local_endpoints > 0 && proxy_healthy, &body);
        answer.headers.push(("X-Load-Balancing-Endpoint-Weight", self.local_endpoints.to_string()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn h1_200_needs_a_local_endpoint_and_a_healthy_proxy() {
        let service = ObjectName::new("Service", "demo", "web").unwrap();
        for (local_endpoints, proxy_healthy, status) in
            [(0, true, 503), (0, false, 503), (3, false, 503), (1, true, 200), (3, true, 200)]
        {
            let port = 30123.try_into().unwrap();
            let answer =
                ServiceHealth { service: service.clone(), port, local_endpoints }.answer(proxy_healthy);
            assert_eq!(answer.status, status, "{local_endpoints} {proxy_healthy}");
            assert_eq!(
                serde_json::from_str::<Value>(&answer.body).unwrap(),
                json!({
                    "service": { "namespace": "demo", "name": "web" },
                    "localEndpoints": local_endpoints,
                    "serviceProxyHealthy": proxy_healthy,
                }),
            );
            let mut headers = answer.headers.clone();
            headers.sort();
            assert_eq!(
                headers,
                [
                    ("Content-Type", "application/json".to_owned()),
                    ("X-Content-Type-Options", "nosniff".to_owned()),
                    ("X-Load-Balancing-Endpoint-Weight", local_endpoints.to_string()),
                ]
            );
            assert_eq!(answer.header("content-type"), Some("application/json"));
            assert_eq!(answer.header("content"), None);
        }
    }
}
