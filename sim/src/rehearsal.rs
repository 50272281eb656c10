//! The rehearsal: a stand-in for K3s.
/// Runs it.
///
/// # Errors
/// When it cannot run.
pub fn run(_args: &[String]) -> Result<u8, String> {
    Err("not built".into())
}
