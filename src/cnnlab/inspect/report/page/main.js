// The report as a page: draw the payload that it contains.

import { render } from "./report.js";

const payload = JSON.parse(document.getElementById("payload").textContent);
render(payload, document.getElementById("report"));
