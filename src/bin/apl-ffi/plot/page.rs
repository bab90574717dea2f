//! A page that needs nothing else: its style and its plots are in it.

use super::escaped;

/// Colours are those of Okabe and Ito, which people who confuse some still tell apart, lightened where the ground is dark.
const STYLE: &str = "
:root{--ground:#fff;--card:#f7f8fa;--ink:#1c2430;--soft:#5b6675;--grid:#dde2e8;
--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b8860b;--c4:#b5488c;--c5:#3d9ad6;--c6:#7a5195;--c7:#6b7280;--good:#1a7f4b;--bad:#c0392b}
@media(prefers-color-scheme:dark){:root{--ground:#12161c;--card:#1a2029;--ink:#e6eaf0;--soft:#9aa6b5;--grid:#2f3844;
--c0:#56b4e9;--c1:#f28c4b;--c2:#3fc79a;--c3:#e6c04d;--c4:#e08fc0;--c5:#8cc8f0;--c6:#b59ad6;--c7:#9aa3af;--good:#4cc38a;--bad:#ff7b6b}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:28px 24px 60px;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:38px 0 6px}p{max-width:76ch;margin:6px 0 12px}.soft{color:var(--soft)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(360px,1fr));gap:18px}
figure{margin:0;background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:10px 10px 8px}
figure>svg{display:block;width:100%;height:auto}
figcaption{font-size:12.5px;color:var(--soft);padding:2px 8px 4px 40px;line-height:1.7}figcaption span{white-space:nowrap;margin-right:12px}
.key{vertical-align:-1px}
text{font:11.5px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:var(--soft)}
text.title{font-size:14px;font-weight:600;fill:var(--ink)}text.label{font-size:12px}.mid{text-anchor:middle}.end{text-anchor:end}
.grid{stroke:var(--grid);stroke-width:1}.axis{stroke:var(--soft);stroke-width:1}
.line{fill:none;stroke-width:2}.dashes{stroke-dasharray:5 4;stroke-width:1.6}.ring{fill:none;stroke-width:1.6}.ghost{fill:transparent}
.bar{opacity:.8}.area{stroke-width:1.4;fill-opacity:.13}
circle:hover,rect:hover{filter:brightness(1.25)}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}th,td{text-align:right;padding:3px 10px;border-bottom:1px solid var(--grid)}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:600}.scroll{overflow-x:auto}
.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}details{margin:12px 0}summary{cursor:pointer;color:var(--soft)}
code{font:13px ui-monospace,'DejaVu Sans Mono',monospace}
";

/// The page: `body` is HTML.
pub fn page(title: &str, body: &str) -> String {
    let colours: String = (0..8)
        .map(|i| {
            format!(".f{i}{{fill:var(--c{i})}}.l{i}{{stroke:var(--c{i})}}.a{i}{{fill:var(--c{i});stroke:var(--c{i})}}\n")
        })
        .collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{0}</title><style>{STYLE}{colours}</style></head>\n<body>\n<h1>{0}</h1>\n{body}</body></html>\n",
        escaped(title)
    )
}

/// A heading, what it says, and plots beside each other.
pub fn section(heading: &str, text: &str, plots: &[String]) -> String {
    format!(
        "<h2>{}</h2>\n<p>{text}</p>\n<div class=\"plots\">\n{}</div>\n",
        escaped(heading),
        plots.concat()
    )
}

/// A table; the first row is its head. Cells are HTML.
pub fn table(rows: &[Vec<String>]) -> String {
    let mut out = String::from("<div class=\"scroll\"><table>\n");
    for (i, row) in rows.iter().enumerate() {
        let tag = if i == 0 { "th" } else { "td" };
        let cells: String = row.iter().map(|c| format!("<{tag}>{c}</{tag}>")).collect();
        out.push_str(&format!("<tr>{cells}</tr>\n"));
    }
    out + "</table></div>\n"
}
