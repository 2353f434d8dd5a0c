//! What the gateway tells about itself: metrics, the access record, and the log.
//!
//! [`access`] and [`metrics`] are the whole list of what is written down about people's traffic.

/// Defines a closed enum whose variants each have one fixed word, the one shown in records and labels.
macro_rules! words {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$inner:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$inner])* $variant,)+
        }

        impl $name {
            /// All of them, in the order of their index.
            pub const ALL: &[$name] = &[$($name::$variant,)+];

            /// The word in records and labels.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

pub mod access;
pub mod log;
pub mod metrics;
