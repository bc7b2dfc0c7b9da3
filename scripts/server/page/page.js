"use strict";
fetch("v1/models").then((answer) => answer.json()).then((models) => {
  document.getElementById("models").textContent = models.data.map((model) => model.id).join(", ");
});
