BprobabilitiesJ!d8
à7Nû?