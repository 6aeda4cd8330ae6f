// The report as a page: the payload that stands in it is drawn once.

import { render } from "./report.js";

const payload = JSON.parse(document.getElementById("payload").textContent);
render(payload, document.getElementById("report"));
