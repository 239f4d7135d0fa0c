BfeaturesJ4†g­?Ð¥=¿yO¾&=S¿º“¾áq0¾ZÎÈ>‹‹d¿du½×([¼DÞw?ñ
 >8üÏ?