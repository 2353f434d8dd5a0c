//! The values that labels have: closed lists, each value one word.

words! {
    /// What a rule did to an exchange.
    pub enum Action {
        /// Let it pass although it is the kind of exchange that the rule watches.
        Permit = "permit",
        /// Changed it.
        Edit = "edit",
        /// Answered in the upstream's place.
        Answer = "answer",
        /// Refused it.
        Deny = "deny",
    }
}

words! {
    /// What a look-up in the verdict cache came to.
    pub enum CacheResult {
        /// A verdict was there.
        Hit = "hit",
        /// The homeserver was asked.
        Miss = "miss",
        /// Somebody else was asking already, and we waited for that answer.
        Joined = "joined",
    }
}

words! {
    /// The state of an upstream connection.
    pub enum PoolState {
        /// Connected, whether used or not.
        Open = "open",
        /// Waits in the pool.
        Idle = "idle",
    }
}

words! {
    /// What said where another server is, as the Matrix specification counts: an address, a port, `.well-known`, SRV, nothing.
    pub enum Step {
        /// Its name is an address.
        Address = "address",
        /// Its name has a port.
        Port = "port",
        /// Its `.well-known` says a name with a port, an address, or a name that has no service record.
        Delegated = "delegated",
        /// A record of `_matrix-fed._tcp`.
        Srv = "srv",
        /// A record of `_matrix._tcp`.
        SrvDeprecated = "srv_deprecated",
        /// Nothing: it is at its own name and the usual port.
        Default = "default",
    }
}

words! {
    /// What came of asking for a tunnel.
    pub enum Tunnel {
        /// It was dug.
        Open = "open",
        /// The policy leaves no way there, the port is not one to connect to, or who asked may not.
        Refused = "refused",
        /// The other end could not be reached.
        Failed = "failed",
        /// It ended here, to be looked into.
        Intercepted = "intercepted",
        /// What came through first was not TLS for the host that was asked for.
        Mismatch = "mismatch",
        /// Who asked for it went away, or said nothing, before anything passed.
        Cancelled = "cancelled",
    }
}

words! {
    /// What became of a contact with somebody outside.
    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Contacted {
        /// It was asked, and its answer came back.
        Passed = "passed",
        /// Something passed that nobody here could read.
        Tunnelled = "tunnelled",
        /// It was not asked: the answer was made here.
        Answered = "answered",
        /// It was not asked: the policy or the door refused.
        Denied = "denied",
        /// It could not be found, reached or believed, did not answer, or who asked went away before that.
        Failed = "failed",
    }
}

words! {
    /// A direction on the way out.
    pub enum Direction {
        /// From Synapse.
        Out = "out",
        /// To Synapse.
        In = "in",
    }
}

words! {
    /// What Synapse got when it asked for a server's keys.
    pub enum KeyAnswer {
        /// Keys that were known.
        Known = "known",
        /// Keys that the server was asked for.
        Fetched = "fetched",
        /// The newest that is known, though Synapse wanted newer.
        Stale = "stale",
        /// Nothing.
        Missing = "missing",
    }
}

words! {
    /// What came of asking a server for its keys.
    pub enum KeyQuestion {
        /// Keys that it signed.
        Good = "good",
        /// No answer, or none in time.
        Unreachable = "unreachable",
        /// No keys, another server's, expired ones, or ones that it did not sign.
        Refused = "refused",
    }
}

words! {
    /// What came of bringing an event to a webhook.
    pub enum Delivery {
        /// It was taken.
        Sent = "sent",
        /// It was not, and is sent again.
        Repeated = "repeated",
        /// It was not, and is not sent any more.
        Failed = "failed",
        /// Too many waited.
        Dropped = "dropped",
    }
}

words! {
    /// How loading a policy, or certificates, ended.
    pub enum Reload {
        /// The new one is in force.
        Success = "success",
        /// The old one stays.
        Failure = "failure",
    }
}

words! {
    /// What the HTTP parser answers by itself.
    pub enum Refusal {
        /// 400
        BadRequest = "400",
        /// 408
        Timeout = "408",
        /// 431
        HeadTooLarge = "431",
        /// The connection ended otherwise.
        Other = "other",
    }
}

words! {
    /// The class of a status.
    pub enum Code {
        /// No status was sent.
        None = "none",
        /// Interim and upgrade.
        Informational = "1xx",
        /// Success.
        Success = "2xx",
        /// Redirection.
        Redirection = "3xx",
        /// The client's fault.
        Client = "4xx",
        /// Ours or the upstream's.
        Server = "5xx",
    }
}

impl From<u16> for Code {
    fn from(status: u16) -> Self {
        match status {
            100..200 => Code::Informational,
            200..300 => Code::Success,
            300..400 => Code::Redirection,
            400..500 => Code::Client,
            500..600 => Code::Server,
            _ => Code::None,
        }
    }
}
