//! page
use apl_ffi::validate::Report;
pub fn page(_: &Report) -> String {
    String::new()
}
