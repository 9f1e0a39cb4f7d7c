// Healthy when the editor's address answers anything below 500; like the official image, this
// tells nothing about the flows. Without a settings file in /data, Node-RED's own port is asked.
const http = require("http");
const https = require("https");
let settings = {};
try {
    settings = require("/data/settings.js");
} catch (error) {
    settings = {};
}
const options = {
    host: "127.0.0.1",
    port: settings.uiPort || 1880,
    path: "/",
    timeout: 4000,
    rejectUnauthorized: false,
};
const request = (settings.https ? https : http).request(options, (answer) => {
    process.exit(answer.statusCode >= 200 && answer.statusCode < 500 ? 0 : 1);
});
request.on("error", () => process.exit(1));
request.on("timeout", () => process.exit(1));
request.end();
