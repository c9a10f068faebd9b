//! What the command sees: the proxy variables that its runtime honours, and nothing else that is new.

use std::net::SocketAddr;

use tokio::process::Command;

/// Hosts that are reached without the sidecar: the command's own machine.
pub(super) const NO_PROXY: &str = "127.0.0.1,localhost,::1";

/// The variables that name the proxy. `ws_proxy` and `wss_proxy` are for aiohttp, which has none for `ws://` else.
const PROXY: [&str; 8] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "WS_PROXY",
    "ws_proxy",
    "WSS_PROXY",
    "wss_proxy",
];

/// Sets the variables on a command.
pub(super) fn set(
    command: &mut Command,
    outbound: SocketAddr,
    secret: &str,
    port: Option<u16>,
    inherited_java: Option<&str>,
) {
    let url = proxy_url(outbound, secret);
    for name in PROXY {
        command.env(name, &url);
    }
    for name in ["NO_PROXY", "no_proxy"] {
        command.env(name, NO_PROXY);
    }
    // It would take precedence over what is set above.
    command.env_remove("ALL_PROXY").env_remove("all_proxy");
    command.env("NODE_USE_ENV_PROXY", "1");
    command.env("JAVA_TOOL_OPTIONS", java(outbound, inherited_java));
    command.env("AIP_URL", &url);
    if let Some(port) = port {
        command.env("PORT", port.to_string());
    }
}

/// The URL by which the command reaches its sidecar. It holds the secret: never log it.
pub(crate) fn proxy_url(outbound: SocketAddr, secret: &str) -> String {
    format!("http://aip:{secret}@{outbound}")
}

/// Java reads no proxy variables, only properties; what was set before stays.
fn java(outbound: SocketAddr, inherited: Option<&str>) -> String {
    let (host, port) = (outbound.ip(), outbound.port());
    let mut options: Vec<String> = inherited.into_iter().map(str::to_owned).collect();
    for scheme in ["http", "https"] {
        options.push(format!("-D{scheme}.proxyHost={host} -D{scheme}.proxyPort={port}"));
    }
    options.push("-Dhttp.nonProxyHosts=localhost|127.*|[::1]".into());
    options.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_runtimes_own_variable_is_set() {
        let mut command = Command::new("true");
        set(
            &mut command,
            "127.0.0.1:9".parse().unwrap(),
            "s3",
            Some(80),
            Some("-Xmx1g"),
        );
        let get = |name: &str| {
            let all = command.as_std().get_envs();
            all.filter(|(k, _)| *k == name)
                .find_map(|(_, v)| Some(v?.to_str()?.to_owned()))
        };
        for name in PROXY.into_iter().chain(["AIP_URL"]) {
            assert_eq!(get(name).as_deref(), Some("http://aip:s3@127.0.0.1:9"), "{name}");
        }
        assert_eq!(get("NO_PROXY").as_deref(), Some("127.0.0.1,localhost,::1"));
        assert_eq!(
            (get("NODE_USE_ENV_PROXY").as_deref(), get("PORT").as_deref()),
            (Some("1"), Some("80"))
        );
        assert!(
            get("JAVA_TOOL_OPTIONS")
                .unwrap()
                .starts_with("-Xmx1g -Dhttp.proxyHost=127.0.0.1")
        );
    }
}
