//! All that the gateway can do to the head of a message.

use std::sync::Arc;

use http::HeaderMap;
use http::header::{ACCEPT_LANGUAGE, HeaderName, HeaderValue, USER_AGENT};

use crate::message::{NEUTRAL_AGENT, SYNAPSE_AGENT};

/// One change to the fields of a message.
#[derive(Clone, Debug)]
pub enum HeadEdit {
    /// Removes these fields.
    Strip(Arc<FieldSet>),
    /// Removes all fields but these.
    KeepOnly(Arc<FieldSet>),
    /// Reduces `User-Agent` to its class: `browser`, `mobile`, `desktop`, `server`, `other`.
    ClassifyAgent,
    /// Leaves of Synapse's own `User-Agent` its name, without its version.
    Product,
    /// Where Synapse fetches a preview of a link: says neither who does, nor in which language.
    NeutralPreview,
    /// Sets a field to this one value, whatever it was.
    Set(HeaderName, HeaderValue),
}

/// A set of field names, and of beginnings of names. Every field of every request is looked up in one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// In the order in which they were written.
    names: Vec<HeaderName>,
    prefixes: Vec<String>,
    /// By the first letter of a name: what in the set begins with it.
    letters: Vec<Letter>,
}

/// What of a set begins with one letter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Letter {
    /// Bit n: there is a name of n bytes, or of n + 64 and so on. Most fields are told to be strangers by this alone.
    lengths: u64,
    names: Vec<HeaderName>,
    prefixes: Vec<String>,
}

impl FieldSet {
    /// The set of these names; one that ends in `*` stands for all that begin so.
    ///
    /// # Errors
    /// The first that is no field name.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, &'a str> {
        let mut set = Self { letters: vec![Letter::default(); LETTERS], ..Self::default() };
        for pattern in patterns {
            let (stem, is_prefix) = pattern.strip_suffix('*').map_or((pattern, false), |stem| (stem, true));
            let name: HeaderName = stem.parse().map_err(|_| pattern)?;
            let letter = &mut set.letters[letter(name.as_str().as_bytes())];
            if is_prefix {
                letter.prefixes.push(name.as_str().to_owned());
                set.prefixes.push(name.as_str().to_owned());
            } else {
                letter.lengths |= length(name.as_str().as_bytes());
                letter.names.push(name.clone());
                set.names.push(name);
            }
        }
        Ok(set)
    }

    /// Whether the set holds this name.
    pub fn contains(&self, name: &HeaderName) -> bool {
        let text = name.as_str().as_bytes();
        let Some(letter) = self.letters.get(letter(text)) else { return false };
        (letter.has_length_of(text) && letter.names.iter().any(|known| known == name)) || letter.begins(text)
    }

    /// The same for a name that is only text, in lower case.
    pub fn contains_text(&self, name: &[u8]) -> bool {
        let Some(letter) = self.letters.get(letter(name)) else { return false };
        (letter.has_length_of(name) && letter.names.iter().any(|known| known.as_str().as_bytes() == name))
            || letter.begins(name)
    }

    /// The names and prefixes, for people.
    pub fn patterns(&self) -> impl Iterator<Item = String> {
        let names = self.names.iter().map(|name| name.as_str().to_owned());
        names.chain(self.prefixes.iter().map(|prefix| format!("{prefix}*")))
    }
}

impl Letter {
    fn has_length_of(&self, name: &[u8]) -> bool {
        self.lengths & length(name) != 0
    }

    fn begins(&self, name: &[u8]) -> bool {
        self.prefixes.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
    }
}

/// Where a name is looked for: field names are in lower case, so that no two letters share a place.
fn letter(name: &[u8]) -> usize {
    name.first().map_or(0, |byte| usize::from(*byte) % LETTERS)
}

fn length(name: &[u8]) -> u64 {
    1 << (name.len() % 64)
}

const LETTERS: usize = 32;

impl HeadEdit {
    /// Makes the change.
    pub fn apply(&self, headers: &mut HeaderMap) {
        match self {
            HeadEdit::Strip(set) => remove_where(headers, |name| set.contains(name)),
            HeadEdit::KeepOnly(set) => remove_where(headers, |name| !set.contains(name)),
            HeadEdit::ClassifyAgent => classify_agent(headers),
            HeadEdit::Product => {
                if let Some(product) = product(headers) {
                    headers.insert(USER_AGENT, product);
                }
            }
            HeadEdit::NeutralPreview => {
                if is_preview(headers) {
                    headers.insert(USER_AGENT, HeaderValue::from_static(NEUTRAL_AGENT));
                    headers.remove(ACCEPT_LANGUAGE);
                }
            }
            HeadEdit::Set(name, value) => {
                headers.insert(name, value.clone());
            }
        }
    }

    /// Whether the change would change anything.
    pub fn bites(&self, headers: &HeaderMap) -> bool {
        match self {
            HeadEdit::Strip(set) => headers.keys().any(|name| set.contains(name)),
            HeadEdit::KeepOnly(set) => headers.keys().any(|name| !set.contains(name)),
            HeadEdit::ClassifyAgent => headers.contains_key(USER_AGENT),
            HeadEdit::Product => product(headers).is_some(),
            HeadEdit::NeutralPreview => is_preview(headers),
            HeadEdit::Set(name, value) => headers.get(name) != Some(value),
        }
    }

    /// The change in words, for `explain`.
    pub fn describe(&self) -> String {
        match self {
            HeadEdit::Strip(set) => format!("remove {}", set.patterns().collect::<Vec<_>>().join(", ")),
            HeadEdit::KeepOnly(set) => format!("keep only {}", set.patterns().collect::<Vec<_>>().join(", ")),
            HeadEdit::ClassifyAgent => "reduce user-agent to its class".into(),
            HeadEdit::Product => "reduce Synapse's user-agent to its name".into(),
            HeadEdit::NeutralPreview => "say neither who fetches a preview, nor in which language".into(),
            HeadEdit::Set(name, value) => format!("set {name}: {}", String::from_utf8_lossy(value.as_bytes())),
        }
    }
}

/// Whether this is what `synapse/media/url_previewer.py` sends.
fn is_preview(headers: &HeaderMap) -> bool {
    headers.get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"Synapse (bot;"))
}

/// Synapse's name, if its version stands behind it. Whatever else is said was chosen, by us or by an operator.
fn product(headers: &HeaderMap) -> Option<HeaderValue> {
    let agent = headers.get(USER_AGENT)?.as_bytes();
    agent.starts_with(b"Synapse/").then_some(HeaderValue::from_static(SYNAPSE_AGENT))
}

fn remove_where(headers: &mut HeaderMap, hit: impl Fn(&HeaderName) -> bool) {
    let goes: Vec<HeaderName> = headers.keys().filter(|name| hit(name)).cloned().collect();
    let stays = headers.keys_len() - goes.len();
    // To remove a field costs half as much again as to put one into a new map, which itself costs as much as three removals.
    if goes.len() * 3 <= stays * 2 + 10 {
        for name in goes {
            headers.remove(name);
        }
        return;
    }
    let all = std::mem::replace(headers, HeaderMap::with_capacity(stays + OWN));
    let mut is_kept = true;
    headers.extend(all.into_iter().filter(|(name, _)| {
        // Further values of one name come without it.
        is_kept = name.as_ref().map_or(is_kept, |name| !hit(name));
        is_kept
    }));
}

/// Room for the fields that the gateway adds.
const OWN: usize = 4;

fn classify_agent(headers: &mut HeaderMap) {
    if let Some(agent) = headers.get_mut(USER_AGENT) {
        *agent = HeaderValue::from_static(class_of(agent.as_bytes()));
    }
}

/// Homeservers and libraries name themselves; phones name their system; what is left and speaks Mozilla is a browser.
fn class_of(agent: &[u8]) -> &'static str {
    const CLASSES: [(&str, &[&str]); 4] = [
        ("server", &["synapse", "dendrite", "conduit", "tuwunel", "construct"]),
        ("mobile", &["android", "iphone", "ipad", "ios", "mobile", "darwin"]),
        ("desktop", &["electron", "nheko", "quaternion", "neochat", "element desktop"]),
        ("browser", &["mozilla"]),
    ];
    let agent = String::from_utf8_lossy(agent).to_ascii_lowercase();
    CLASSES.iter().find(|(_, marks)| marks.iter().any(|mark| agent.contains(mark))).map_or("other", |(class, _)| class)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers() -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("origin", "https://app.element.io"),
            ("sec-fetch-mode", "cors"),
            ("sec-fetch-site", "none"),
            ("secret", "1"),
            ("accept", "*/*"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        headers.append("origin", "twice".parse().unwrap());
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn strips_every_value_of_a_name_and_all_names_with_a_prefix() {
        let mut headers = headers();
        HeadEdit::Strip(Arc::new(FieldSet::new(["Origin", "Sec-Fetch-*"]).unwrap())).apply(&mut headers);
        assert_eq!(names(&headers), ["accept", "secret"]);
    }

    #[test]
    fn keeps_only_what_is_listed() {
        let mut headers = headers();
        HeadEdit::KeepOnly(Arc::new(FieldSet::new(["accept"]).unwrap())).apply(&mut headers);
        assert_eq!(names(&headers), ["accept"]);
    }

    #[test]
    fn of_synapse_only_the_name_is_left() {
        for (agent, product) in [
            ("Synapse/1.163.2", "Synapse"),
            ("Synapse/1.163.2 (b=develop,1234567)", "Synapse"),
            ("Synapse (bot; +https://example.org)", "Synapse (bot; +https://example.org)"),
            ("Synapse", "Synapse"),
            ("Mozilla/5.0 (compatible)", "Mozilla/5.0 (compatible)"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(USER_AGENT, agent.parse().unwrap());
            assert_eq!(HeadEdit::Product.bites(&headers), agent != product);
            HeadEdit::Product.apply(&mut headers);
            assert_eq!(headers[USER_AGENT], product);
        }
        let mut headers = HeaderMap::new();
        HeadEdit::Product.apply(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn an_agent_is_reduced_to_its_class() {
        for (agent, class) in [
            ("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36", "browser"),
            ("Element X/26.1 (iPhone 16; iOS 26.1)", "mobile"),
            ("Mozilla/5.0 Electron/38 Element/1.12", "desktop"),
            ("Synapse/1.163.2", "server"),
            ("curl/8.5", "other"),
            ("", "other"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(USER_AGENT, agent.parse().unwrap());
            HeadEdit::ClassifyAgent.apply(&mut headers);
            assert_eq!(headers[USER_AGENT], class, "{agent}");
        }
    }
}
