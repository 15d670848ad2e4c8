use alloc::string::String;
use alloc::vec::Vec;

use crate::{Alert, AlertStatus, Failure, Output, Publication, Reply, Retry, Severity, Wake};

impl Alert {
    /// Something is wrong: a warning, unless [`critical`](Self::critical) or [`info`](Self::info) says otherwise. The key
    /// names what it is about; repeats with one key are folded, and [`resolved`](Self::resolved) with the same key ends it.
    pub fn firing(key: impl Into<String>, summary: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            severity: Severity::Warning,
            status: AlertStatus::Firing,
            summary: summary.into(),
            value: None,
            labels: Vec::new(),
            sink: None,
        }
    }

    /// It is over.
    pub fn resolved(key: impl Into<String>, summary: impl Into<String>) -> Self {
        Self { status: AlertStatus::Resolved, ..Self::firing(key, summary) }
    }

    pub fn info(mut self) -> Self {
        self.severity = Severity::Info;
        self
    }

    pub fn critical(mut self) -> Self {
        self.severity = Severity::Critical;
        self
    }

    /// Left out where it is not finite, which JSON cannot write.
    pub fn value(mut self, value: f64) -> Self {
        self.value = Some(value).filter(|value| value.is_finite());
        self
    }

    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((name.into(), value.into()));
        self
    }

    /// Sends it to the sink with this name. Without it the board chooses.
    pub fn sink(mut self, name: impl Into<String>) -> Self {
        self.sink = Some(name.into());
        self
    }
}

impl Publication {
    pub fn new(topic: impl Into<String>, payload: impl Into<Vec<u8>>) -> Self {
        Self { topic: topic.into(), payload: payload.into(), content_type: None, retain: false, sink: None }
    }

    /// With content type `application/json`: a [`JsonObject`](crate::JsonObject), a [`JsonArray`](crate::JsonArray), or other JSON.
    pub fn json(topic: impl Into<String>, json: impl Into<Vec<u8>>) -> Self {
        Self { content_type: Some("application/json".into()), ..Self::new(topic, json) }
    }

    /// The broker keeps it for later subscribers.
    pub fn retained(mut self) -> Self {
        self.retain = true;
        self
    }

    /// Sends it to the sink with this name. Without it the board chooses.
    pub fn sink(mut self, name: impl Into<String>) -> Self {
        self.sink = Some(name.into());
        self
    }
}

impl Output {
    /// To the local broker. The manifest's `[allow] publish` must have the topic.
    pub fn publish(topic: impl Into<String>, payload: impl Into<Vec<u8>>) -> Self {
        Self::Publish(Publication::new(topic, payload))
    }

    pub fn publish_json(topic: impl Into<String>, json: impl Into<Vec<u8>>) -> Self {
        Self::Publish(Publication::json(topic, json))
    }

    /// Upstream, as data.
    pub fn forward(topic: impl Into<String>, payload: impl Into<Vec<u8>>) -> Self {
        Self::Forward(Publication::new(topic, payload))
    }

    pub fn forward_json(topic: impl Into<String>, json: impl Into<Vec<u8>>) -> Self {
        Self::Forward(Publication::json(topic, json))
    }

    /// Runs the function again after this time, with the topic `$wake/<name>` and the state of the message that sets it. Setting a
    /// name again moves it. It survives a restart and a power cut.
    ///
    /// ```
    /// use sedge_function::{Function, Message, Outcome, Output};
    ///
    /// struct Door;
    /// impl Function for Door {
    ///     fn handle(message: Message) -> Outcome {
    ///         match message.wake() {
    ///             Some(_) => Ok(vec![Output::publish("house/siren", "on")]),
    ///             None if message.payload == b"open" => Ok(vec![Output::wake("open", 300_000)]),
    ///             None => Ok(vec![Output::cancel_wake("open")]),
    ///         }
    ///     }
    /// }
    /// ```
    pub fn wake(name: impl Into<String>, after_ms: u64) -> Self {
        Self::Wake(Wake { name: name.into(), after_ms: Some(after_ms) })
    }

    /// Takes back a [`wake`](Self::wake).
    pub fn cancel_wake(name: impl Into<String>) -> Self {
        Self::Wake(Wake { name: name.into(), after_ms: None })
    }

    /// Answers the HTTP request that caused the run.
    pub fn reply(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::Reply(Reply { status, content_type: None, body: body.into() })
    }

    pub fn reply_json(status: u16, json: impl Into<Vec<u8>>) -> Self {
        Self::Reply(Reply { status, content_type: Some("application/json".into()), body: json.into() })
    }

    /// Sends an alert or a publication to the sink with this name. Without it the board chooses.
    pub fn sink(self, name: impl Into<String>) -> Self {
        match self {
            Self::Alert(alert) => Self::Alert(alert.sink(name)),
            Self::Forward(publication) => Self::Forward(publication.sink(name)),
            Self::Publish(publication) => Self::Publish(publication.sink(name)),
            other => other,
        }
    }
}

impl From<Alert> for Output {
    fn from(alert: Alert) -> Self {
        Self::Alert(alert)
    }
}

impl Failure {
    /// The message makes no sense to this function: a dead letter, with this reason.
    pub fn reject(reason: impl Into<String>) -> Self {
        Self::Reject(reason.into())
    }

    /// Run the function again on this message after at least that time.
    pub fn retry(after_ms: u64, reason: impl Into<String>) -> Self {
        Self::Retry(Retry { after_ms, reason: reason.into() })
    }
}

/// Clears the value of an alert, whose fields are public, where JSON cannot write it.
pub(crate) fn without_infinity(mut outputs: Vec<Output>) -> Vec<Output> {
    for output in &mut outputs {
        if let Output::Alert(alert) = output {
            alert.value = alert.value.filter(|value| value.is_finite());
        }
    }
    outputs
}

impl From<&str> for Failure {
    fn from(reason: &str) -> Self {
        Self::reject(reason)
    }
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self::Reject(reason)
    }
}
