//! Skein's lab, and the stand-in for K3s that it can run.
//!
//! | module | what |
//! |---|---|
//! | [`mod@beside`] | programs that were built with this one |
//! | [`mod@bench`] | what the lab measures |
//! | [`chaos`] | the whole fleet in one process, under one seed |
//! | [`lab`] | hosts in namespaces on one machine, with real daemons |
//! | [`mortal`] | Skein on a machine that counts its steps and can be killed after any |
//! | [`picture`] | a recorded terminal as a picture |
//! | [`probe`] | how long an address did not answer |
//! | [`rehearsal`] | a stand-in with K3s' command line, files and ports |
//! | [`tutorial`] | the tutorial as a program |

pub mod bench;
pub mod beside;
pub mod chaos;
pub mod lab;
pub mod mortal;
pub mod picture;
pub mod probe;
pub mod rehearsal;
pub mod tutorial;

/// Ends a program as its command ended: with its code, or with its words and failure.
pub fn finish(result: Result<u8, String>) -> std::process::ExitCode {
    match result {
        Ok(code) => std::process::ExitCode::from(code),
        Err(why) => {
            lab::say(format!("error: {why}"));
            std::process::ExitCode::FAILURE
        }
    }
}
