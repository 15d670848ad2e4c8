//! Topics of deployment, shared by board and command line.
//!
//! ```text
//! <base>/<node>/deploy/<function>         retained: the order for one board
//! <base>/group/<group>/deploy/<function>  retained: the order for a group
//! <base>/<node>/settings/<function>         retained: the order of settings for one board
//! <base>/group/<group>/settings/<function>  retained: the order of settings for a group
//! <base>/<node>/request/<id>              a request to one board, not retained
//! <base>/<node>/reply/<id>/<n>            the parts of its answer, not retained
//! <base>/blob/<digest>/<index>            retained: a chunk of a module
//! <base>/<node>/functions/<function>      retained: the board's report
//! <base>/<node>/status                    retained: the board's status, also its last will
//! ```

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::check;
use crate::manifest;
use crate::message::Digest;

/// Pseudo function name for changes of the trusted keys.
pub const KEYS: &str = "_keys";

/// Addressee of an order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    Node(Box<str>),
    Group(Box<str>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topic {
    /// The function's name, or [`KEYS`].
    Deploy {
        target: Target,
        function: Arc<str>,
    },
    Settings {
        target: Target,
        function: Arc<str>,
    },
    Request {
        node: Arc<str>,
        id: Arc<str>,
    },
    Reply {
        node: Arc<str>,
        id: Arc<str>,
        number: u32,
    },
    Blob {
        digest: Digest,
        index: u32,
    },
    Report {
        node: Arc<str>,
        function: Arc<str>,
    },
    Status {
        node: Arc<str>,
    },
}

/// Builds and parses Sedge's own topics, all under one first level.
#[derive(Clone, Debug)]
pub struct Topics {
    base: Arc<str>,
}

impl Topics {
    pub fn new(base: &str) -> Self {
        Self { base: base.into() }
    }

    /// `None` for other topics and for invalid names of functions, groups or nodes.
    pub fn parse(&self, topic: &str) -> Option<Topic> {
        let rest = topic.strip_prefix(&*self.base)?.strip_prefix('/')?;
        let levels: Vec<&str> = rest.splitn(5, '/').collect();
        match levels[..] {
            ["group", group, "deploy", function] => {
                Some(Topic::Deploy { target: Target::Group(level(group)?.into()), function: named(function)? })
            }
            ["group", group, "settings", function] => {
                Some(Topic::Settings { target: Target::Group(level(group)?.into()), function: of_function(function)? })
            }
            [node, "settings", function] => Some(Topic::Settings {
                target: Target::Node(node_name(node)?.into()),
                function: of_function(function)?,
            }),
            [node, "request", id] => Some(Topic::Request { node: node_name(node)?.into(), id: request_id(id)?.into() }),
            [node, "reply", id, number_of] => Some(Topic::Reply {
                node: node_name(node)?.into(),
                id: request_id(id)?.into(),
                number: number(number_of)?,
            }),
            ["blob", digest, index] => Some(Topic::Blob { digest: digest.parse().ok()?, index: number(index)? }),
            [node, "deploy", function] => {
                Some(Topic::Deploy { target: Target::Node(node_name(node)?.into()), function: named(function)? })
            }
            [node, "functions", function] => {
                Some(Topic::Report { node: node_name(node)?.into(), function: named(function)? })
            }
            [node, "status"] => Some(Topic::Status { node: node_name(node)?.into() }),
            _ => None,
        }
    }

    pub fn deploy(&self, target: &Target, function: &str) -> String {
        format!("{}/{function}", self.deploy_under(target))
    }

    pub fn settings(&self, target: &Target, function: &str) -> String {
        format!("{}/{function}", self.under(target, "settings"))
    }

    pub fn blob(&self, digest: &Digest, index: u32) -> String {
        format!("{}/blob/{digest}/{index}", self.base)
    }

    pub fn report(&self, node: &str, function: &str) -> String {
        format!("{}/{node}/functions/{function}", self.base)
    }

    pub fn status(&self, node: &str) -> String {
        format!("{}/{node}/status", self.base)
    }

    pub fn request(&self, node: &str, id: &str) -> String {
        format!("{}/{node}/request/{id}", self.base)
    }

    /// Filter of all requests to a board.
    pub fn requests(&self, node: &str) -> String {
        self.request(node, "+")
    }

    pub fn reply(&self, node: &str, id: &str, number: u32) -> String {
        format!("{}/{node}/reply/{id}/{number}", self.base)
    }

    /// Filter of all parts of an answer.
    pub fn replies(&self, node: &str, id: &str) -> String {
        format!("{}/{node}/reply/{id}/+", self.base)
    }

    /// Filter of all orders for a target.
    pub fn deploys(&self, target: &Target) -> String {
        format!("{}/+", self.deploy_under(target))
    }

    /// Filter of all orders of settings for a target.
    pub fn all_settings(&self, target: &Target) -> String {
        format!("{}/+", self.under(target, "settings"))
    }

    /// Filter of all chunks of a module.
    pub fn blobs(&self, digest: &Digest) -> String {
        format!("{}/blob/{digest}/+", self.base)
    }

    /// Filter of the reports of a board, or of all boards.
    pub fn reports(&self, node: Option<&str>) -> String {
        format!("{}/{}/functions/+", self.base, node.unwrap_or("+"))
    }

    /// Filter of the status of a board, or of all boards.
    pub fn statuses(&self, node: Option<&str>) -> String {
        self.status(node.unwrap_or("+"))
    }

    fn deploy_under(&self, target: &Target) -> String {
        self.under(target, "deploy")
    }

    fn under(&self, target: &Target, kind: &str) -> String {
        match target {
            Target::Node(node) => format!("{}/{node}/{kind}", self.base),
            Target::Group(group) => format!("{}/group/{group}/{kind}", self.base),
        }
    }
}

fn level(text: &str) -> Option<&str> {
    check::level(text).ok().map(|()| text)
}

/// A node named `group` or `blob` would be ambiguous.
fn node_name(text: &str) -> Option<&str> {
    if matches!(text, "group" | "blob") { None } else { level(text) }
}

fn of_function(text: &str) -> Option<Arc<str>> {
    manifest::is_name(text).then(|| text.into())
}

/// At most 64 letters, digits and hyphens: it is also the name of a file.
fn request_id(text: &str) -> Option<&str> {
    let is_one = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (!text.is_empty() && text.len() <= 64 && text.bytes().all(is_one)).then_some(text)
}

fn named(text: &str) -> Option<Arc<str>> {
    (text == KEYS || manifest::is_name(text)).then(|| text.into())
}

/// Decimal without sign and leading zeros: one topic per chunk.
fn number(text: &str) -> Option<u32> {
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Group(group) => write!(f, "group {group}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn topics_parse_as_built() {
        let topics = Topics::new("sedge");
        let digest: Digest = DIGEST.parse().unwrap();
        for target in [Target::Node("pump-3".into()), Target::Group("pumps".into())] {
            let topic = topics.deploy(&target, "threshold-alert");
            let settings = topics.settings(&target, "threshold-alert");
            let function = "threshold-alert".into();
            assert_eq!(topics.parse(&settings), Some(Topic::Settings { target: target.clone(), function }));
            assert_eq!(topics.parse(&topic), Some(Topic::Deploy { target, function: "threshold-alert".into() }));
        }
        assert_eq!(topics.parse(&topics.blob(&digest, 70)), Some(Topic::Blob { digest, index: 70 }));
        let report = topics.report("pump-3", KEYS);
        assert_eq!(topics.parse(&report), Some(Topic::Report { node: "pump-3".into(), function: KEYS.into() }));
        assert_eq!(topics.parse(&topics.status("pump-3")), Some(Topic::Status { node: "pump-3".into() }));
        let (node, id): (Arc<str>, Arc<str>) = ("pump-3".into(), "7f-2".into());
        let request = Topic::Request { node: Arc::clone(&node), id: Arc::clone(&id) };
        assert_eq!(topics.parse(&topics.request("pump-3", "7f-2")), Some(request));
        assert_eq!(topics.parse(&topics.reply("pump-3", "7f-2", 12)), Some(Topic::Reply { node, id, number: 12 }));
        assert_eq!(topics.deploy(&Target::Group("g".into()), "f"), "sedge/group/g/deploy/f");
        assert_eq!(topics.blobs(&digest), format!("sedge/blob/{DIGEST}/+"));
        assert_eq!(topics.deploys(&Target::Node("n".into())), "sedge/n/deploy/+");
        assert_eq!(topics.reports(None), "sedge/+/functions/+");
        assert_eq!(topics.statuses(Some("n")), "sedge/n/status");
    }

    #[test]
    fn other_topics_are_ignored() {
        let topics = Topics::new("sedge");
        for topic in [
            "",
            "sedge",
            "sedge/",
            "sedge2/n/deploy/f",
            "other/n/deploy/f",
            "sedge/n/deploy/F",
            "sedge/n/deploy/",
            "sedge/n/deploy/_other",
            "sedge/n/deploy/f/g",
            "sedge//deploy/f",
            "sedge/group/deploy/f",
            "sedge/group/settings/f",
            "sedge/n/settings/_keys",
            "sedge/group//deploy/f",
            "sedge/group/g/functions/f",
            "sedge/blob/deploy/f",
            "sedge/n/request/../x",
            "sedge/n/request/..",
            "sedge/n/request/",
            "sedge/n/reply/7f",
            "sedge/n/reply/7f/-1",
            &format!("sedge/blob/{DIGEST}/01"),
            &format!("sedge/blob/{DIGEST}/+1"),
            &format!("sedge/blob/{DIGEST}/-1"),
            &format!("sedge/blob/{DIGEST}/4294967296"),
            &format!("sedge/blob/{}/1", DIGEST.to_uppercase()),
            &format!("sedge/blob/{}/1", &DIGEST[1..]),
            &format!("sedge/n/deploy/{}", "f".repeat(65)),
        ] {
            assert_eq!(topics.parse(topic), None, "{topic}");
        }
    }

    #[test]
    fn targets_as_json() {
        let json = serde_json::to_string(&Target::Group("pumps".into())).unwrap();
        assert_eq!(json, r#"{"group":"pumps"}"#);
        assert_eq!(serde_json::from_str::<Target>(r#"{"node":"n"}"#).unwrap(), Target::Node("n".into()));
        assert!(serde_json::from_str::<Target>(r#"{"node":"n","group":"g"}"#).is_err());
        assert!(serde_json::from_str::<Target>("{}").is_err());
    }
}
