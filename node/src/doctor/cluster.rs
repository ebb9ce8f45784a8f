//! Ports, mount, and, if the node runs, the others and their clocks.

use super::Finding;
use crate::admin::{Request, client};
use crate::config::Config;
use crate::data::DataDir;
use crate::preflight;
use crate::status::{State, Status};
use std::time::Duration;

/// Beyond this, times of files look wrong.
const CLOCK_WARN: Duration = Duration::from_secs(2);
/// Beyond this, tokens expire at surprising times.
const CLOCK_FAIL: Duration = Duration::from_secs(300);

pub(super) fn examine(data: &DataDir, config: &Config) -> Vec<Finding> {
    let running = data.in_use() == Some(true);
    if !running {
        return vec![
            match preflight::ports_free(config.listen) {
                Ok(()) => Finding::ok("ports", format!("{} is free", config.listen)),
                Err(e) => Finding::from_error("ports", &e),
            },
            match preflight::ready_mount_point(&config.mount.point, false) {
                Ok(()) => Finding::ok("mount", format!("{} is ready", config.mount.point.display())),
                Err(e) => Finding::from_error("mount", &e),
            },
            Finding::warn(
                "node",
                "not running, so the other nodes and their clocks were not looked at",
                format!("hfcache node run --data {}", data.path().display()),
            ),
        ];
    }
    let status = client::ask(data, Request::Status, Duration::from_secs(15), |_| ())
        .map_err(|e| e.to_string())
        .and_then(|v| serde_json::from_value::<Status>(v).map_err(|e| e.to_string()));
    match status {
        Ok(status) => judge(&status),
        Err(e) => vec![Finding::fail("node", e, "look at its log; if it does not move, restart it")],
    }
}

fn judge(status: &Status) -> Vec<Finding> {
    let mut found = Vec::new();
    found.push(match (status.healthy, status.problems.join("; ")) {
        (true, _) => Finding::ok("cluster", "healthy"),
        (false, why) => Finding::warn("cluster", why, "hfcache status says more"),
    });
    found.push(if status.mount.ready {
        Finding::ok("mount", format!("{} is usable", status.mount.path.display()))
    } else {
        Finding::fail("mount", "not usable yet", "it needs a leader and a session: see `hfcache status`")
    });
    let own = status.nodes.iter().find(|n| n.id == status.node).and_then(|n| n.facts.as_ref());
    for node in status.nodes.iter().filter(|n| n.id != status.node && n.state != State::Joined) {
        let name = format!("{} ({})", node.name, node.addr);
        let Some(facts) = &node.facts else {
            found.push(Finding::fail(
                "reach",
                format!("{name} does not answer"),
                format!(
                    "start it, or let packets through: UDP {0} and {1}, TCP {0}",
                    node.addr.port(),
                    node.addr.port().saturating_add(1)
                ),
            ));
            continue;
        };
        found.push(Finding::ok("reach", format!("{name} answers")));
        let offset = own.map_or(0, |o| facts.wall.0.abs_diff(o.wall.0));
        let shown = format!("{name}: {:.1} s apart", offset as f64 / 1e9);
        let mend = "synchronise clocks: chrony or systemd-timesyncd on every node";
        found.push(match Duration::from_nanos(offset) {
            d if d > CLOCK_FAIL => Finding::fail("clock", shown, mend),
            d if d > CLOCK_WARN => Finding::warn("clock", shown, mend),
            _ => Finding::ok("clock", shown),
        });
        if own.is_some_and(|o| o.version != facts.version) {
            found.push(Finding::warn(
                "version",
                format!("{name} runs {}", facts.version),
                "run the same version on all nodes when an upgrade is done",
            ));
        }
    }
    found
}
